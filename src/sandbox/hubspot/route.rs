//! Which call a path means. HubSpot's areas come in two forms, `/crm/v3/objects/…` and `/crm/objects/2026-03/…`; both
//! lead to the same [`Route`].

use axum::http::Method;

use super::ticket::LinkKind;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    Authorize,
    /// `terse`: the answer of the first version, with four fields only.
    Token {
        terse: bool,
    },
    Introspect,
    Revoke,
    /// The first version's way, which has the token in the path.
    RevokeInPath {
        token: &'a str,
    },
    TokenInfo {
        token: &'a str,
    },
    Details,
    List,
    One {
        id: &'a str,
    },
    BatchRead,
    Search,
    /// `numeric`: the ids of the other side are numbers, as on v4's wire.
    LinksBatch {
        kind: LinkKind,
        numeric: bool,
    },
    LinksOfOne {
        id: &'a str,
        kind: LinkKind,
        numeric: bool,
    },
    Properties,
    Property {
        name: &'a str,
    },
    Pipelines,
    Pipeline {
        id: &'a str,
    },
    Owners,
    Owner {
        id: &'a str,
    },
    Unknown,
}

/// The path segments that no call has more of.
const SEGMENTS_MAX: usize = 8;

impl<'a> Route<'a> {
    pub fn of(method: &Method, path: &'a str) -> Self {
        let mut segments = [""; SEGMENTS_MAX];
        let mut count = 0;
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            if count == SEGMENTS_MAX {
                return Self::Unknown;
            }
            segments[count] = segment;
            count += 1;
        }
        Self::of_segments(method, &segments[..count])
    }

    fn of_segments(method: &Method, segments: &[&'a str]) -> Self {
        let (get, post, delete) = (method == Method::GET, method == Method::POST, method == Method::DELETE);
        match *segments {
            ["oauth", "authorize"] if get => Self::Authorize,
            ["oauth", version, "token"] if post => Self::Token { terse: version == "v1" },
            ["oauth", _, "token", "introspect"] if post => Self::Introspect,
            ["oauth", _, "token", "revoke"] if post => Self::Revoke,
            ["oauth", "v1", "refresh-tokens", token] if delete => Self::RevokeInPath { token },
            ["oauth", "v1", "access-tokens", token] if get => Self::TokenInfo { token },
            ["account-info", version, "details"] if get && is_version(version) => Self::Details,
            ["crm", first, second, ref rest @ ..] if is_number_version(first) => {
                Self::of_area(method, second, first, rest)
            }
            ["crm", first, second, ref rest @ ..] if is_dated_version(second) => {
                Self::of_area(method, first, second, rest)
            }
            // The first form of the owners' path ends with its area.
            _ => Self::Unknown,
        }
    }

    fn of_area(method: &Method, area: &str, version: &str, rest: &[&'a str]) -> Self {
        let (get, post) = (method == Method::GET, method == Method::POST);
        let numeric = version == "v4";
        match (area, rest) {
            ("objects", [object, rest @ ..]) if is_ticket(object) => {
                Self::of_objects(get, post, numeric, rest)
            }
            ("associations", [from, to, "batch", "read"]) if post && is_ticket(from) && version != "v3" => {
                link_kind(to).map_or(Self::Unknown, |kind| Self::LinksBatch { kind, numeric })
            }
            ("properties", [object]) if get && is_ticket(object) => Self::Properties,
            ("properties", [object, name]) if get && is_ticket(object) => Self::Property { name },
            ("pipelines", [object]) if get && is_ticket(object) => Self::Pipelines,
            ("pipelines", [object, id]) if get && is_ticket(object) => Self::Pipeline { id },
            ("owners", []) if get => Self::Owners,
            ("owners", [id]) if get => Self::Owner { id },
            _ => Self::Unknown,
        }
    }

    fn of_objects(get: bool, post: bool, numeric: bool, rest: &[&'a str]) -> Self {
        match *rest {
            [] if get => Self::List,
            ["search"] if post => Self::Search,
            ["batch", "read"] if post => Self::BatchRead,
            [id] if get => Self::One { id },
            [id, "associations", to] if get => {
                link_kind(to).map_or(Self::Unknown, |kind| Self::LinksOfOne { id, kind, numeric })
            }
            _ => Self::Unknown,
        }
    }

    /// The word under which the call is counted, and by which a fault finds it.
    pub fn purpose(self, form: &[u8]) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::Token { .. } if is_refresh(form) => "token_refresh",
            Self::Token { .. } => "token_exchange",
            Self::Introspect | Self::TokenInfo { .. } => "introspect",
            Self::Revoke | Self::RevokeInPath { .. } => "revoke",
            Self::Details => "account",
            Self::List => "list",
            Self::One { .. } => "get",
            Self::BatchRead => "batch_read",
            Self::Search => "search",
            Self::LinksBatch { .. } | Self::LinksOfOne { .. } => "associations",
            Self::Properties | Self::Property { .. } => "properties",
            Self::Pipelines | Self::Pipeline { .. } => "pipelines",
            Self::Owners | Self::Owner { .. } => "owners",
            Self::Unknown => "unknown",
        }
    }

    /// The scope that the grant must have.
    pub fn scope(self) -> &'static str {
        match self {
            Self::Owners | Self::Owner { .. } => "crm.objects.owners.read",
            Self::Details => "oauth",
            _ => "tickets",
        }
    }
}

fn is_refresh(form: &[u8]) -> bool {
    url::form_urlencoded::parse(form).any(|(name, value)| name == "grant_type" && value == "refresh_token")
}

fn is_version(text: &str) -> bool {
    is_number_version(text) || is_dated_version(text)
}

fn is_number_version(text: &str) -> bool {
    matches!(text, "v3" | "v4")
}

/// `2026-03`, `2026-09-beta`.
fn is_dated_version(text: &str) -> bool {
    let date = text.strip_suffix("-beta").unwrap_or(text).as_bytes();
    date.len() == 7
        && date.iter().enumerate().all(|(at, c)| if at == 4 { *c == b'-' } else { c.is_ascii_digit() })
}

fn is_ticket(object: &str) -> bool {
    matches!(object, "tickets" | "ticket" | "0-5")
}

/// By singular, plural, or type id.
pub fn link_kind(object: &str) -> Option<LinkKind> {
    match object {
        "companies" | "company" | "0-2" => Some(LinkKind::Company),
        "contacts" | "contact" | "0-1" => Some(LinkKind::Contact),
        "deals" | "deal" | "0-3" => Some(LinkKind::Deal),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_path_mean_the_same() {
        let contact = LinkKind::Contact;
        for (method, path, expected) in [
            ("GET", "/crm/v3/objects/tickets", Route::List),
            ("GET", "/crm/v4/objects/tickets", Route::List),
            ("GET", "/crm/objects/2026-03/tickets", Route::List),
            ("GET", "/crm/objects/2027-09-beta/0-5", Route::List),
            ("GET", "/crm/objects/2026-03/tickets/9001", Route::One { id: "9001" }),
            ("POST", "/crm/v3/objects/tickets/search", Route::Search),
            ("POST", "/crm/objects/2026-03/tickets/search", Route::Search),
            ("GET", "/crm/objects/2026-03/tickets/search", Route::One { id: "search" }),
            ("POST", "/crm/v3/objects/tickets/batch/read", Route::BatchRead),
            (
                "POST",
                "/crm/v4/associations/tickets/contacts/batch/read",
                Route::LinksBatch { kind: contact, numeric: true },
            ),
            (
                "POST",
                "/crm/associations/2026-03/tickets/contact/batch/read",
                Route::LinksBatch { kind: contact, numeric: false },
            ),
            ("POST", "/crm/v3/associations/tickets/contacts/batch/read", Route::Unknown),
            (
                "GET",
                "/crm/v4/objects/tickets/7/associations/contacts",
                Route::LinksOfOne { id: "7", kind: contact, numeric: true },
            ),
            ("GET", "/crm/v3/properties/tickets", Route::Properties),
            ("GET", "/crm/properties/2026-03/tickets", Route::Properties),
            ("GET", "/crm/pipelines/2026-03/tickets", Route::Pipelines),
            ("GET", "/crm/v3/owners", Route::Owners),
            ("GET", "/crm/v3/owners/", Route::Owners),
            ("GET", "/crm/owners/2026-03", Route::Owners),
            ("GET", "/account-info/v3/details", Route::Details),
            ("GET", "/account-info/2026-03/details", Route::Details),
            ("POST", "/oauth/v1/token", Route::Token { terse: true }),
            ("POST", "/oauth/v3/token", Route::Token { terse: false }),
            ("POST", "/oauth/2026-03/token", Route::Token { terse: false }),
            ("GET", "/oauth/2026-03/token", Route::Unknown),
            ("GET", "/crm/v3/objects/contacts", Route::Unknown),
            ("GET", "/crm/objects/2026-3/tickets", Route::Unknown),
            ("GET", "/a/b/c/d/e/f/g/h/i", Route::Unknown),
            ("GET", "/", Route::Unknown),
        ] {
            assert_eq!(Route::of(&method.parse().unwrap(), path), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_refresh_is_told_from_an_exchange() {
        let token = Route::Token { terse: false };
        assert_eq!(token.purpose(b"grant_type=refresh_token&x=1"), "token_refresh");
        assert_eq!(token.purpose(b"grant_type=authorization_code&code=refresh_token"), "token_exchange");
    }
}
