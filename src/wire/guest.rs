//! What somebody without a login says to a server, and what it answers (docs/protocol.md, 3.1 and 3.2). The chunks are the same in
//! the dealer and in the tcp dialect.

use bytes::Bytes;

use super::dealer::{AUTH, REQUEST_SERVER_INFO};
use super::pickle::{self, Value};

/// A server's answer to somebody without a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Info(ServerInfo),
    /// `LOBBY`, `RUNNING` or `FAILED: why`.
    Auth(String),
}

/// What a server says of itself to everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Whether a password is needed to log in.
    pub private: bool,
    /// The version that the session belongs to, else the newest one the server knows.
    pub version: String,
}

/// Asks for [`ServerInfo`].
pub fn server_info() -> Vec<Bytes> {
    command(REQUEST_SERVER_INFO, "guest", &Value::str("RQ_INFO"))
}

/// Asks to be let in under an empty name, which is refused after everything else has been found right. An empty password is how the
/// add-on says that it has none. With an admin password it asks to be an admin.
pub fn nameless_login(
    server_password: &str,
    admin_password: Option<&str>,
    version: &str,
) -> Vec<Bytes> {
    let kind = if admin_password.is_some() {
        "ADMIN"
    } else {
        "CLIENT"
    };
    let data = Value::dict([
        ("AUTH_TYPE", Value::str(kind)),
        ("AUTH_ID", Value::str("")),
        ("S_PWD", Value::str(server_password)),
        ("A_PWD", admin_password.map_or(Value::None, Value::str)),
        ("VERSION", Value::str(version)),
    ]);
    command(AUTH, "", &data)
}

/// The answer in a message, if it is one.
pub fn answer(chunks: &[Bytes]) -> Option<Answer> {
    let [type_num, _owner, data] = chunks else {
        return None;
    };
    let data = pickle::decode(data).ok()?;
    match pickle::decode(type_num).ok()?.as_i64()? {
        REQUEST_SERVER_INFO => Some(Answer::Info(ServerInfo {
            private: data.get("private")?.as_bool()?,
            version: data.get("version")?.as_str()?.to_owned(),
        })),
        AUTH => Some(Answer::Auth(data.as_str()?.to_owned())),
        _ => None,
    }
}

fn command(type_num: i64, owner: &'static str, data: &Value) -> Vec<Bytes> {
    vec![
        pickle::encode(&Value::Int(type_num)).into(),
        Bytes::from_static(owner.as_bytes()),
        pickle::encode(data).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Channel, Dialect, Inbound, Outbound, dealer};

    #[test]
    fn the_server_understands_what_is_asked() {
        let asked = |chunks: &[Bytes]| {
            dealer::decode(Dialect::Dealer, Channel::Command, chunks).expect("a known message")
        };
        assert!(matches!(asked(&server_info()), Inbound::ServerInfo));
        let Inbound::Auth(login) = asked(&nameless_login("s", Some("a"), "0.9.10")) else {
            panic!("not an Auth");
        };
        assert!(login.name.is_empty() && login.wants_admin && !login.one_password);
        assert_eq!(
            (&*login.server_password, &*login.admin_password),
            ("s", "a")
        );
    }

    #[test]
    fn the_servers_answers_are_understood() {
        let said = |message: &Outbound| {
            let chunks: Vec<Bytes> = dealer::encode(message)
                .iter()
                .map(|chunk| chunk.to_bytes())
                .collect();
            answer(&chunks)
        };
        let version = "0.9.10".to_owned();
        assert_eq!(
            said(&Outbound::ServerInfo {
                private: true,
                version: version.clone()
            }),
            Some(Answer::Info(ServerInfo {
                private: true,
                version
            }))
        );
        assert_eq!(
            said(&Outbound::Auth("LOBBY".into())),
            Some(Answer::Auth("LOBBY".into()))
        );
        assert_eq!(said(&Outbound::InitDone), None);
    }
}
