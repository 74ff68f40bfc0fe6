//! What somebody may have meant by a name that does not exist.

use super::sources::ENVIRONMENT_PREFIX;

/// Edits that a name may be away, for every this many characters of it.
const CHARACTERS_PER_EDIT: usize = 4;

/// The key, or the section, that `unknown` is most likely meant to be.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .flat_map(with_sections)
        .map(|candidate| (distance(unknown, candidate), candidate))
        .filter(|((edits, _), candidate)| *edits <= 1 + last(candidate).len() / CHARACTERS_PER_EDIT)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// The variable that sets a key.
pub(super) fn variable(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// A key and the sections it stands in: `providers.hubspot.pkce`, `providers.hubspot`, `providers`.
fn with_sections(key: &str) -> impl Iterator<Item = &str> {
    let sections = key.rmatch_indices('.').map(move |(end, _)| &key[..end]);
    std::iter::once(key).chain(sections)
}

/// Edits between two names, and for ties those between the whole names. A wrong section counts as one edit, a dot
/// written as an underscore as none.
fn distance(unknown: &str, candidate: &str) -> (usize, usize) {
    let flat = |text: &str| text.replace('.', "_");
    let whole = strsim::damerau_levenshtein(&flat(unknown), &flat(candidate));
    let key = 1 + strsim::damerau_levenshtein(last(unknown), last(candidate));
    // The name alone tells something only where both are keys; a section is compared as a whole.
    (if candidate.contains('.') { whole.min(key) } else { whole }, whole)
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 5] = [
        "callback.listen",
        "daemon.workers",
        "providers.hubspot.client_id",
        "sync.overlap",
        "sync.poll_interval",
    ];

    #[test]
    fn suggestions() {
        let check = |unknown: &str, expected: Option<&str>| {
            assert_eq!(nearest(unknown, KNOWN.into_iter()).as_deref(), expected, "{unknown}");
        };
        check("sync.pol_interval", Some("sync.poll_interval"));
        check("sync.poll-interval", Some("sync.poll_interval"));
        check("sync_poll_interval", Some("sync.poll_interval"));
        check("poll_interval", Some("sync.poll_interval"));
        check("daemon.poll_interval", Some("sync.poll_interval"));
        check("snyc", Some("sync"));
        check("daemon.worker", Some("daemon.workers"));
        check("providers.hubspt", Some("providers.hubspot"));
        check("providers.hubspot.clientid", Some("providers.hubspot.client_id"));
        check("colour", None);
        check("sync.colour", None);
    }

    #[test]
    fn variables() {
        assert_eq!(variable("providers.hubspot.client_id"), "FIELDMIRROR_PROVIDERS__HUBSPOT__CLIENT_ID");
    }
}
