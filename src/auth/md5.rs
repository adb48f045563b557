//! PostgreSQL's md5 password response. Never a good idea, but some clients and servers know no better.
//! Never compares in a time that depends on the secret.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// `"md5" + md5(md5(password + user) + salt)`, in hexadecimal: see "MD5 password" in PostgreSQL's
/// message flow documentation.
pub fn response(user: &str, password: &str, salt: [u8; 4]) -> String {
    let inner = hex(Md5::new().chain_update(password).chain_update(user));
    format!(
        "md5{}",
        hex(Md5::new().chain_update(inner).chain_update(salt))
    )
}

pub fn verify(user: &str, password: &str, salt: [u8; 4], answer: &[u8]) -> bool {
    response(user, password, salt)
        .as_bytes()
        .ct_eq(answer)
        .into()
}

fn hex(digest: Md5) -> String {
    digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_response_is_postgresqls() {
        // md5("passwordmd5_user"), then md5 of that and the salt.
        let expected = "md562af4dd09bbb41884907a838a3233294";
        assert_eq!(
            response("md5_user", "password", [0x2a, 0x3d, 0x8f, 0xe0]),
            expected
        );
    }

    #[test]
    fn only_the_right_answer_verifies() {
        let salt = [1, 2, 3, 4];
        let answer = response("app", "secret", salt);
        assert!(verify("app", "secret", salt, answer.as_bytes()));
        assert!(!verify("app", "secret", [1, 2, 3, 5], answer.as_bytes()));
        assert!(!verify("app", "Secret", salt, answer.as_bytes()));
        assert!(!verify("other", "secret", salt, answer.as_bytes()));
        assert!(!verify(
            "app",
            "secret",
            salt,
            answer.to_uppercase().as_bytes()
        ));
        assert!(!verify("app", "secret", salt, b""));
    }
}
