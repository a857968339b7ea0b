//! The tcp dialect: what `replication` 0.9.12 and 0.10 spell in another way than the dealer dialect (docs/protocol.md, 6.1).
//! Their messages are the dealer dialect's; the framing around them is in `net`.

use super::dealer;
use super::pickle::Value;
use super::{Chunk, Outbound};

/// The chunks of a message to a client.
pub fn encode(message: &Outbound) -> Vec<Chunk> {
    match message {
        // A plain text ends the client by an exception before it can show it. 0.9.11 has this in common.
        Outbound::Disconnect { reason } => {
            dealer::disconnect(&Value::dict([("reason", Value::str(reason))]))
        }
        _ => dealer::encode(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pickle;

    #[test]
    fn the_reason_of_a_disconnect_is_in_a_dict() {
        let reason = "kicked by admin".to_owned();
        let chunks = encode(&Outbound::Disconnect { reason });
        let data = pickle::decode(&chunks[2].to_bytes()).unwrap();
        assert_eq!(
            data.get("reason").and_then(Value::as_str),
            Some("kicked by admin")
        );
    }
}
