//! What a server's log says of connections that break their permissions or limits:
//!
//! ```text
//! [1065] 2026/11/29 00:19:32.700582 [ERR] 127.0.0.1:54040 - cid:59 - "v2.16.0:python3:n1" - "AD2U…/APP/jwt:UDPP…" - Publish Violation - Subject "job.v1.eu.echo.n1"
//! [1065] 2026/11/29 00:19:32.700582 [ERR] 127.0.0.1:46708 - lid:74 - Publish Violation on "audit.v1.api.api-1" - Check other side configuration
//! ```
//!
//! The second is of a server of somebody else, of whom the broker says no more.
//!
//! The first text in quotes is chosen by the client, so that it may look like anything, also like the rest of another's line: texts in quotes
//! are read as the Go strings they are, and never searched.

use std::borrow::Cow;

use probeops_shared::planted;

use crate::permissions::AccountName;

/// A line about a connection that had been let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The connection's number at its server.
    pub cid: u64,
    /// The account, by name or else by key.
    pub account: String,
    /// The public key of the credential; empty of a server, of which the broker does not say it.
    pub user: String,
    /// From where it came.
    pub host: String,
    /// What it did.
    pub what: What,
}

/// What a connection did that it may not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// It published what it may not.
    Publish(String),
    /// It subscribed what it may not; also the queue group, where it named one.
    Subscribe(String, Option<String>),
    /// It went beyond a limit, or was no client; in the broker's words.
    Other(String),
}

impl What {
    /// In a word or two.
    pub fn said(&self) -> Cow<'_, str> {
        match self {
            Self::Publish(_) => "publish".into(),
            Self::Subscribe(_, None) => "subscribe".into(),
            Self::Subscribe(_, Some(queue)) => format!("subscribe in queue group {queue}").into(),
            Self::Other(what) => what.into(),
        }
    }

    /// The subject, where there is one.
    pub fn subject(&self) -> &str {
        match self {
            Self::Publish(subject) | Self::Subscribe(subject, _) => subject,
            Self::Other(_) => "",
        }
    }
}

/// The longest word of the broker's that is kept.
const WHAT_CHARS_MAX: usize = 200;
/// What comes with every credential in the log.
const JWT: &str = "jwt:";

/// Reads a line; `None` if it is about something else.
pub fn read(line: &str) -> Option<Line> {
    let rest = line.strip_prefix('[')?.split_once("] ")?.1;
    // Day and time.
    let rest = rest.split_once(' ')?.1.split_once(' ')?.1;
    let (host, rest) = rest.strip_prefix("[ERR] ")?.split_once(" - ")?;
    let address = host.rsplit_once(':').map_or(host, |(address, _)| address).to_owned();
    if let Some((lid, what)) = rest.strip_prefix("lid:").and_then(|rest| rest.split_once(" - ")) {
        let (account, user) = (AccountName::Audit.as_str().to_owned(), String::new());
        return Some(Line { cid: lid.parse().ok()?, account, user, host: address, what: read_what_of_server(what)? });
    }
    let (cid, rest) = rest.strip_prefix("cid:").or_else(|| rest.strip_prefix("wid:"))?.split_once(" - ")?;
    let (_client, rest) = quoted(rest)?;
    let (credential, rest) = quoted(rest.strip_prefix(" - ")?)?;
    let (account, user) = credential.rsplit_once('/')?;
    let what = rest.strip_prefix(" - ")?;
    Some(Line {
        cid: cid.parse().ok()?,
        account: account.rsplit('/').next().unwrap_or_default().to_owned(),
        user: user.strip_prefix(JWT)?.to_owned(),
        host: address,
        what: read_what(what)?,
    })
}

/// What a server did; of one that goes, or is not let in, others tell.
fn read_what_of_server(what: &str) -> Option<What> {
    if let Some(rest) = what.strip_prefix("Publish Violation on ") {
        return Some(What::Publish(quoted(rest)?.0));
    }
    Some(What::Subscribe(quoted(what.strip_prefix("Subscription Violation on ")?)?.0, None))
}

fn read_what(what: &str) -> Option<What> {
    let publish = what.strip_prefix("Publish Violation - Subject ").or_else(|| what.strip_prefix("Reply Violation - Reply "));
    if let Some(rest) = publish {
        return Some(What::Publish(quoted(rest)?.0));
    }
    if let Some(rest) = what.strip_prefix("Subscription Violation - Subject ") {
        let (subject, rest) = quoted(rest)?;
        let queue = rest.strip_prefix(", Queue: ").and_then(quoted).map(|(queue, _)| queue);
        return Some(What::Subscribe(subject, queue));
    }
    Some(What::Other(what.chars().take(WHAT_CHARS_MAX).collect()))
}

/// Reads a Go string (`strconv.Quote`): what it says, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut said = String::new();
    let mut chars = text.strip_prefix('"')?.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' if planted!("broker" if said.ends_with('-') && text.get(at + 2..).is_some_and(|rest| rest.starts_with('"'))) => {
                return Some((said, text.get(at + 3..)?));
            }
            '"' => return Some((said, text.get(at + 2..)?)),
            '\\' => said.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                // Of others the letters stay: they are shown, and compared with nothing.
                'x' | 'u' | 'U' => char::REPLACEMENT_CHARACTER,
                other => other,
            }),
            other => said.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "[1065] 2026/11/29 00:19:32.700582 [ERR] 127.0.0.1:54040 - cid:59 - ";
    const WHO: &str = "\"ADX/APP/jwt:UDPP\"";

    fn of(client: &str, what: &str) -> Option<Line> {
        read(&format!("{HEAD}{client} - {WHO} - {what}"))
    }

    #[test]
    fn lines_about_connections_are_understood() {
        let line = of("\"v1:rust:n1\"", "Publish Violation - Subject \"job.v1.eu.echo.n1\"").unwrap();
        let expected = Line {
            cid: 59,
            account: "APP".to_owned(),
            user: "UDPP".to_owned(),
            host: "127.0.0.1".to_owned(),
            what: What::Publish("job.v1.eu.echo.n1".to_owned()),
        };
        assert_eq!(line, expected);
        let what = |text: &str| of("\"v1:rust:n1\"", text).unwrap().what;
        assert_eq!(what("Subscription Violation - Subject \">\", SID 1"), What::Subscribe(">".to_owned(), None));
        let joined = What::Subscribe("job.v1.eu.echo.*".to_owned(), Some("other".to_owned()));
        assert_eq!(what("Subscription Violation - Subject \"job.v1.eu.echo.*\", Queue: \"other\", SID 1"), joined);
        assert_eq!(what("maximum subscriptions exceeded"), What::Other("maximum subscriptions exceeded".to_owned()));
        assert_eq!(what("Publish Violation - Subject \"a\\\"b.c\\\\d\""), What::Publish("a\"b.c\\d".to_owned()));
    }

    #[test]
    fn what_a_server_of_another_may_not_is_understood_and_nothing_else_that_is_said_of_it() {
        let of = |what: &str| read(&format!("[1065] 2026/11/29 00:19:32.700582 [ERR] 10.1.2.3:46708 - lid:74 - {what}"));
        let line = of("Publish Violation on \"audit.v1.api.api-1\" - Check other side configuration").unwrap();
        assert_eq!((line.cid, line.account.as_str(), line.user.as_str(), line.host.as_str()), (74, "AUDIT", "", "10.1.2.3"));
        assert_eq!(line.what, What::Publish("audit.v1.api.api-1".to_owned()));
        let subscribed = of("Subscription Violation on \"x\" - Check other side configuration").unwrap();
        assert_eq!(subscribed.what, What::Subscribe("x".to_owned(), None));
        assert_eq!(of("authentication error"), None);
        assert_eq!(of("Leafnode Error 'Permissions Violation'"), None);
    }

    #[test]
    fn what_a_client_calls_itself_is_never_taken_for_another_line() {
        let forged = "Publish Violation - Subject \\\"x\\\"";
        let client = format!("\"v1:rust:\\n{HEAD}\\\"v1\\\" - \\\"ADX/APP/jwt:UOTHER\\\" - {forged}\"");
        let line = of(&client, "Publish Violation - Subject \"y\"").unwrap();
        assert_eq!((line.user.as_str(), line.what), ("UDPP", What::Publish("y".to_owned())));
    }

    #[test]
    fn other_lines_are_none() {
        for other in [
            "[1065] 2026/11/29 00:19:34.624918 [ERR] 127.0.0.1:54042 - cid:60 - authentication error",
            "[1065] 2026/11/29 00:19:34.624918 [INF] Server is ready",
            "[1065] 2026/11/29 00:19:34.624918 [ERR] 127.0.0.1:1 - rid:60 - \"x\" - \"A/B/jwt:U\" - y",
            "[1065] 2026/11/29 00:19:34.624918 [ERR] 127.0.0.1:1 - cid:60 - \"x",
            "",
            "[",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
