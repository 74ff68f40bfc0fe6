//! What is done to `database.url` before libpq sees it: refuse what libpq would quote back at us, and add the time
//! limits that it leaves out.
//!
//! libpq repeats parts of an address that it cannot read in its error text, and a password with an unescaped `@` or `/`
//! is then one of the parts. So addresses of doubtful shape are refused here, in words that hold nothing of them.

use crate::domain::secret::Secret;

/// Parameters added where the address does not set them. Seconds, except `tcp_user_timeout` in milliseconds
/// (PostgreSQL documentation, "Parameter Key Words"). Together: a peer that vanished is noticed within about a minute,
/// not after the kernel's two hours. They do nothing on a unix socket.
const DEFAULTS: [(&str, &str); 6] = [
    ("connect_timeout", "10"),
    ("keepalives_idle", "30"),
    ("keepalives_interval", "10"),
    ("keepalives_count", "3"),
    ("tcp_user_timeout", "30000"),
    ("application_name", "fieldmirror"),
];

/// The address with its defaults; or what is wrong with it, without a word of the address itself.
pub(super) fn complete(url: &Secret) -> Result<Secret, &'static str> {
    let text = url.expose();
    check_shape(text)?;
    let query = text.split_once('?').map(|(_, query)| query);
    let given = |name: &str| {
        query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some(name)))
    };
    let mut complete = text.to_owned();
    let mut separator = if query.is_some_and(|query| !query.is_empty()) {
        "&"
    } else if query.is_some() {
        ""
    } else {
        "?"
    };
    for (name, value) in DEFAULTS.into_iter().filter(|(name, _)| !given(name)) {
        complete.push_str(separator);
        complete.push_str(name);
        complete.push('=');
        complete.push_str(value);
        separator = "&";
    }
    Ok(Secret::new(complete))
}

fn check_shape(text: &str) -> Result<(), &'static str> {
    let rest = text
        .strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
        .ok_or("it must start with `postgresql://`")?;
    if text.contains(['\0', '#']) || text.contains(char::is_whitespace) {
        return Err("`#`, spaces and control characters must be percent-encoded");
    }
    let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = location.split_once('/').unwrap_or((location, ""));
    if authority.matches('@').count() > 1 || path.contains(['@', '/']) {
        return Err("`@` and `/` in the user name, password or database name must be percent-encoded");
    }
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.matches(':').count() > 1 || !hosts.split(',').all(port_is_a_number) {
        return Err(
            "`:`, `/` and `?` in the user name or password must be percent-encoded, and the port a number",
        );
    }
    if !query.split('&').all(|pair| pair.is_empty() || pair.matches('=').count() == 1) {
        return Err("what follows `?` must be `name=value` pairs, joined by `&` and percent-encoded");
    }
    if !percent_encoding_is_sound(text) {
        return Err(
            "every `%` must be followed by two hexadecimal digits, and must not stand for a zero byte",
        );
    }
    Ok(())
}

fn port_is_a_number(host: &str) -> bool {
    // A bracketed IPv6 address has colons of its own.
    let after_host = host.rsplit_once(']').map_or(host, |(_, after)| after);
    match after_host.split_once(':') {
        None => true,
        Some((_, port)) => port.is_empty() || port.parse::<u16>().is_ok(),
    }
}

fn percent_encoding_is_sound(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let digits = after.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit) && &digits[..2] != b"00"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_what_is_missing_only() {
        let complete = |url: &str| complete(&url.into()).unwrap().expose().to_owned();
        let all = "connect_timeout=10&keepalives_idle=30&keepalives_interval=10&keepalives_count=3\
                   &tcp_user_timeout=30000&application_name=fieldmirror";
        assert_eq!(complete("postgres://h/d"), format!("postgres://h/d?{all}"));
        assert_eq!(complete("postgres://h/d?"), format!("postgres://h/d?{all}"));
        assert_eq!(complete("postgresql:///d?host=/run"), format!("postgresql:///d?host=/run&{all}"));
        let own = complete("postgresql://u:p%40@h:5/d?connect_timeout=2");
        assert!(own.starts_with("postgresql://u:p%40@h:5/d?connect_timeout=2&keepalives_idle=30"), "{own}");
        assert_eq!(own.matches("connect_timeout").count(), 1);
    }

    #[test]
    fn shapes() {
        for good in [
            "postgresql://",
            "postgresql://localhost",
            "postgres://u:p@h1:5432,h2:/d?target_session_attrs=read-write",
            "postgres://u@[::1]:5432/d",
            "postgres://[::1]/d",
            "postgresql:///fieldmirror?host=/var/lib/x/run&user=fieldmirror",
            "postgresql://%2Frun%2Fpg/d",
        ] {
            assert_eq!(check_shape(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_libpq_would_quote_back_is_refused_in_words_without_it() {
        for bad in [
            "",
            "host=h password=hunter2",
            "postgres//u:hunter2@h/d",
            "mysql://u:hunter2@h/d",
            "postgres://u:hun@ter2@h/d",
            "postgres://u:hun/ter2@h/d",
            "postgres://u:hun?ter2@h/d",
            "postgres://u:hun#ter2@h/d",
            "postgres://u:hun:ter2@h/d",
            "postgres://u:hunter2%@h/d",
            "postgres://u:hunter2%zz@h/d",
            "postgres://u:hunter2%00@h/d",
            "postgres://u:hunter2@h:port/d",
            "postgres://u@h/d?password=hun=ter2",
            "postgres://u@h/d?hunter2",
            "postgres://u:hunter2@h /d",
        ] {
            let refusal = complete(&bad.into()).expect_err(bad);
            assert!(!refusal.contains("ter2"), "{refusal}");
        }
    }
}
