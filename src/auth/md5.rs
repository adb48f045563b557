//! PostgreSQL's md5 password response. Never a good idea, but some clients and servers know no better.
//! Never compares in a time that depends on the secret.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// What PostgreSQL stores in place of a password: `"md5" + md5(password + user)`, in hexadecimal.
pub fn stored(user: &str, password: &str) -> String {
    let hash = Md5::new().chain_update(password).chain_update(user);
    format!("md5{}", hex(hash))
}

/// What answers a request with `salt`, by what is [stored]: `"md5" + md5(hash + salt)`; see "MD5
/// password" in PostgreSQL's message flow documentation.
pub fn response(stored: &str, salt: [u8; 4]) -> String {
    let hash = stored.strip_prefix("md5").unwrap_or(stored);
    format!(
        "md5{}",
        hex(Md5::new().chain_update(hash).chain_update(salt))
    )
}

pub fn verify(stored: &str, salt: [u8; 4], answer: &[u8]) -> bool {
    response(stored, salt).as_bytes().ct_eq(answer).into()
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
        let stored = stored("md5_user", "password");
        assert_eq!(response(&stored, [0x2a, 0x3d, 0x8f, 0xe0]), expected);
    }

    #[test]
    fn only_the_right_answer_verifies() {
        let salt = [1, 2, 3, 4];
        let right = stored("app", "secret");
        let answer = response(&right, salt);
        assert!(verify(&right, salt, answer.as_bytes()));
        assert!(!verify(&right, [1, 2, 3, 5], answer.as_bytes()));
        assert!(!verify(&stored("app", "Secret"), salt, answer.as_bytes()));
        assert!(!verify(&stored("other", "secret"), salt, answer.as_bytes()));
        assert!(!verify(&right, salt, answer.to_uppercase().as_bytes()));
        assert!(!verify(&right, salt, b""));
    }
}
