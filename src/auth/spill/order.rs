//! Which of two replies to one grant came later: the one on record, or one that is kept. Generations alone do not tell:
//! where a database was restored, two machines count on from the same number.

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::{Deserialize, Serialize};

use crate::db::tokens::Token;
use crate::http::oauth::Granted;

/// A reply as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    pub granted: Granted,
    /// `None`: for a code, or by a version that did not note it.
    pub from: Option<Traded>,
}

/// The token whose trade brought a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traded {
    pub generation: i64,
    /// When the request that had brought it was sent. With the generation this names the token; it is compared for equality
    /// alone, so that it does not matter whose clock it is of.
    pub issued_at: DateTime<Utc>,
    /// When its trade began, by the database's clock.
    pub begun_at: DateTime<Utc>,
}

/// What is on record of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    pub generation: i64,
    pub issued_at: DateTime<Utc>,
    /// When it was written down, or its trade had begun where that was long before, by the database's clock.
    pub written_at: Option<DateTime<Utc>>,
}

/// How a kept reply stands to what is on record of its grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It is written down, or something later is.
    Known,
    /// What is on record was traded for it: it takes that one's place.
    Next,
    /// It came later, and what came between them is not known: its token is offered first, and nothing is overwritten.
    Ahead,
}

impl From<&Token> for Recorded {
    fn from(token: &Token) -> Self {
        let Token { generation, issued_at, last_refresh_at: written_at, .. } = *token;
        Self { generation, issued_at, written_at }
    }
}

impl Traded {
    fn is(self, on_record: Recorded) -> bool {
        // The database keeps microseconds.
        self.generation == on_record.generation
            && self.issued_at.trunc_subsecs(6) == on_record.issued_at.trunc_subsecs(6)
    }
}

impl Kept {
    /// Compares it, as `generation`, with what is on record of the same grant.
    ///
    /// The clocks of two hosts may be apart, and an order by them would let a spent token be traded. They decide only where
    /// there is nothing else: over a reply that does not say what was traded for it.
    pub fn order(&self, generation: i64, on_record: Recorded) -> Order {
        if generation <= on_record.generation {
            return Order::Known;
        }
        let is_next = generation == on_record.generation + 1;
        let sent_later = || self.granted.sent_at.trunc_subsecs(6) > on_record.issued_at.trunc_subsecs(6);
        match (self.from, on_record.written_at) {
            (Some(from), _) if from.is(on_record) && is_next => Order::Next,
            (Some(from), _) if from.is(on_record) => Order::Ahead,
            (Some(from), Some(written_at)) if from.begun_at > written_at => Order::Ahead,
            (Some(_), None) if sent_later() => Order::Ahead,
            (None, _) if sent_later() => {
                if is_next {
                    Order::Next
                } else {
                    Order::Ahead
                }
            }
            _ => Order::Known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::token::TokenSet;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 123_456_789).expect("a time in this century")
    }

    fn kept(sent_s: i64, from: Option<(i64, i64, i64)>) -> Kept {
        let tokens = TokenSet {
            access_token: "AT".into(),
            refresh_token: Some("RT".into()),
            expires_in: None,
            scopes: Vec::new(),
        };
        let from = from.map(|(generation, issued_s, begun_s)| Traded {
            generation,
            issued_at: at(issued_s),
            begun_at: at(begun_s),
        });
        let (extra, claims) = (serde_json::Value::Null, None);
        Kept { granted: Granted { tokens, extra, claims, sent_at: at(sent_s) }, from }
    }

    #[test]
    fn a_kept_reply_is_compared_with_the_one_on_record() {
        // Generation 5, sent at 100 by one host's clock, written at 100 by the database's.
        let recorded = |written_s: Option<i64>| Recorded {
            generation: 5,
            issued_at: at(100).trunc_subsecs(6),
            written_at: written_s.map(at),
        };
        for (generation, sent_s, from, written_s, expected) in [
            (5, 200, Some((4, 50, 200)), Some(100), Order::Known),
            (6, 200, Some((5, 100, 200)), Some(100), Order::Next),
            // Its clock is behind that of the host before, or the database's was set back: it was traded for it.
            (6, 20, Some((5, 100, 20)), Some(100), Order::Next),
            // Another host's token was traded for it, which this database has lost.
            (6, 200, Some((5, 90, 200)), Some(100), Order::Ahead),
            (7, 200, Some((6, 150, 200)), Some(100), Order::Ahead),
            (7, 20, Some((6, 10, 200)), Some(100), Order::Ahead),
            (8, 200, Some((5, 100, 200)), Some(100), Order::Ahead),
            // It was there before the one on record.
            (6, 80, Some((5, 60, 80)), Some(100), Order::Known),
            (7, 300, Some((6, 60, 80)), Some(100), Order::Known),
            (7, 200, Some((6, 60, 200)), None, Order::Ahead),
            (7, 80, Some((6, 60, 200)), None, Order::Known),
            // It does not say.
            (6, 200, None, Some(100), Order::Next),
            (7, 200, None, Some(100), Order::Ahead),
            (6, 80, None, Some(100), Order::Known),
            // The very same, under another number.
            (7, 100, None, Some(100), Order::Known),
        ] {
            let order = kept(sent_s, from).order(generation, recorded(written_s));
            assert_eq!(order, expected, "{generation} {sent_s} {from:?} {written_s:?}");
        }
    }
}
