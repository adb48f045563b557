//! Messages in readable form, and the only differences that are none.

use std::collections::HashMap;

use tidegate::wire::frame::body;

/// What one client has been sent may name these; by their first appearance they are the same ones.
#[derive(Default)]
pub struct Names {
    oids: HashMap<u32, usize>,
    processes: HashMap<u32, usize>,
}

/// The first OID that is not of the system's own.
const OIDS_OF_USERS: u32 = 16384;
/// Longer bodies are shown by their beginning, length and checksum.
const SHOWN_BYTES_MAX: usize = 2000;

impl Names {
    /// A message in readable form. What differs between any two servers is taken out:
    ///
    /// * OIDs of tables and types that scripts have made, which depend on what was made before;
    /// * processes, in BackendKeyData and NotificationResponse, and the secret of a cancel request;
    /// * nonces and salts in SASL messages.
    pub fn show(&mut self, frame: &[u8], errors_by_code: bool) -> String {
        let tag = frame[0];
        let mut body = body(frame).to_vec();
        match tag {
            b'T' => self.rename_columns(&mut body),
            b't' => {
                for oid in body[2..].chunks_exact_mut(4) {
                    rename_oid(&mut self.oids, oid);
                }
            }
            b'A' => rename(&mut self.processes, &mut body[..4]),
            b'K' => return format!("K {} bytes", body.len()),
            b'R' if body.len() > 4 && body[3] >= 11 => body.truncate(4),
            b'E' | b'N' if errors_by_code => return code_alone(tag, &body),
            _ => {}
        }
        let more = match body.len() {
            len if len > SHOWN_BYTES_MAX => {
                let sum = checksum(&body);
                body.truncate(SHOWN_BYTES_MAX / 10);
                format!("… {len} bytes, checksum {sum:016x}")
            }
            _ => String::new(),
        };
        format!("{} {}{more}", tag as char, body.escape_ascii())
    }

    /// A RowDescription: the OIDs of each column's table and type.
    fn rename_columns(&mut self, body: &mut [u8]) {
        let mut at = 2;
        while at < body.len() {
            let name = body[at..].iter().position(|&b| b == 0).expect("a name");
            at += name + 1;
            rename_oid(&mut self.oids, &mut body[at..at + 4]);
            rename_oid(&mut self.oids, &mut body[at + 6..at + 10]);
            at += 18;
        }
    }
}

/// The messages of a greeting, with the parameters in the order of their names: PostgreSQL's order is
/// that of a table in its memory, and changes from version to version.
pub fn sort_parameters(shown: &mut [String]) {
    let is_parameter = |line: &String| line.starts_with("S ");
    let start = shown.iter().position(is_parameter).unwrap_or(0);
    let run = shown[start..]
        .iter()
        .take_while(|l| is_parameter(l))
        .count();
    shown[start..start + run].sort();
}

fn rename_oid(known: &mut HashMap<u32, usize>, oid: &mut [u8]) {
    let number = u32::from_be_bytes((&*oid).try_into().expect("four bytes"));
    if number >= OIDS_OF_USERS {
        rename(known, oid);
    }
}

fn rename(known: &mut HashMap<u32, usize>, number: &mut [u8]) {
    let key = u32::from_be_bytes((&*number).try_into().expect("four bytes"));
    let next = known.len();
    let order = *known.entry(key).or_insert(next);
    // Not a number that a server gives.
    number.copy_from_slice(&(0xffff_0000 + order as u32).to_be_bytes());
}

fn code_alone(tag: u8, body: &[u8]) -> String {
    let fields = body.split(|&b| b == 0);
    let shown: Vec<_> = fields
        .filter(|field| matches!(field.first(), Some(b'V' | b'C')))
        .map(|field| field.escape_ascii().to_string())
        .collect();
    format!("{} {}", tag as char, shown.join(" "))
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
