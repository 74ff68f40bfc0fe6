//! The name of a spill: `{connection}-{grant}-{generation}.spill`, and a number before the ending where several replies
//! have the same.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::domain::ids::ConnectionId;

const ENDING: &str = ".spill";

/// Which reply a spill holds. Ordered by connection, grant and generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub connection: ConnectionId,
    pub grant: Uuid,
    /// The generation that the token has with this reply.
    pub generation: i64,
    /// Tells replies apart that two daemons got for the same refresh.
    pub copy: u8,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connection, grant, generation, copy } = self;
        write!(f, "{}-{grant}-{generation}", connection.0)?;
        if *copy > 0 {
            write!(f, ".{copy}")?;
        }
        f.write_str(ENDING)
    }
}

/// The text is no name of a spill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoName;

impl FromStr for Name {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let name = parse(text).ok_or(NoName)?;
        // One text for one name: no sign, no leading zero, no capital.
        if name.to_string() == text { Ok(name) } else { Err(NoName) }
    }
}

fn parse(text: &str) -> Option<Name> {
    let (connection, rest) = text.strip_suffix(ENDING)?.split_once('-')?;
    let (grant, rest) = rest.rsplit_once('-')?;
    let (generation, copy) = rest.split_once('.').unwrap_or((rest, "0"));
    Some(Name {
        connection: ConnectionId(connection.parse().ok()?),
        grant: grant.parse().ok()?,
        generation: generation.parse().ok()?,
        copy: copy.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_read_back() {
        let grant = "0199d5a0-5f0b-7c3e-8a51-9d3f0c1b2a3d".parse().expect("a UUID");
        for (generation, copy, text) in [
            (1, 0, "7-0199d5a0-5f0b-7c3e-8a51-9d3f0c1b2a3d-1.spill"),
            (12, 3, "7-0199d5a0-5f0b-7c3e-8a51-9d3f0c1b2a3d-12.3.spill"),
        ] {
            let name = Name { connection: ConnectionId(7), grant, generation, copy };
            assert_eq!(name.to_string(), text);
            assert_eq!(text.parse(), Ok(name));
        }
    }

    #[test]
    fn nothing_else_is_a_name() {
        let grant = "0199d5a0-5f0b-7c3e-8a51-9d3f0c1b2a3d";
        for text in [
            String::new(),
            "id".to_owned(),
            "7.spill".to_owned(),
            format!("7-{grant}.spill"),
            format!("7-{grant}-1"),
            format!("+7-{grant}-1.spill"),
            format!("7-{grant}-01.spill"),
            format!("7-{grant}-1.0.spill"),
            format!("7-{grant}-1.999.spill"),
            format!("7-{}-1.spill", grant.to_uppercase()),
            format!("../7-{grant}-1.spill"),
            format!("7-{grant}-1.spill.spill"),
        ] {
            assert_eq!(text.parse::<Name>(), Err(NoName), "{text}");
        }
    }
}
