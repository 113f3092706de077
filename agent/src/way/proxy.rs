//! Which proxy stands between this node and its broker and API, and who we are to it.

use std::fmt;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use hyper::Uri;
use hyper::header::{HeaderName, PROXY_AUTHORIZATION};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use probeops_nats::layout::files;
use probeops_shared::host::Host;

use crate::config::ProxySetting;
use crate::policy::Endpoint;

/// What a proxy's address must look like.
const WANTS: &str = "must be http://HOST:PORT or http://USER@HOST:PORT, such as http://proxy.example:3128";

/// The setting where there is none, whatever the environment says.
const NONE: &str = "none";

/// An HTTP proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    endpoint: Endpoint,
    login: Login,
    /// From where it is known: a setting, or a variable of the environment.
    known_from: &'static str,
}

/// Who we are to it.
#[derive(Clone)]
enum Login {
    Nobody,
    /// The password is read at every connection, so that a new one needs no restart.
    User {
        name: String,
        password_file: PathBuf,
    },
    /// As the environment has it; not for the log.
    Ready(String),
}

/// The proxies for the addresses of the broker and the API.
#[derive(Debug)]
pub(crate) enum Proxies {
    /// None, says the setting.
    Straight,
    /// The setting, which goes for all.
    Set(Proxy),
    /// What the environment says (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), as curl reads it.
    Environment(Box<Matcher>),
}

impl Proxies {
    /// From the settings `proxy` and `proxy_password_file`; from the environment when there are none.
    pub(crate) fn new(setting: &ProxySetting) -> Result<Self, String> {
        match (setting.proxy.as_deref(), setting.proxy_password_file.as_ref()) {
            (Some(NONE), None) => Ok(Self::Straight),
            (Some(text), file) => Proxy::parse(text, file).map(Self::Set),
            (None, Some(_)) => Err("proxy_password_file: there is no proxy; set proxy = \"http://USER@HOST:PORT\" with it".to_owned()),
            (None, None) => Ok(Self::Environment(Box::new(Matcher::from_env()))),
        }
    }

    /// The proxy on the way to this server. The environment's is not asked for what is on this machine.
    pub(crate) fn of(&self, server: &Endpoint) -> Option<Proxy> {
        match self {
            Self::Straight => None,
            Self::Set(proxy) => Some(proxy.clone()),
            Self::Environment(matcher) => {
                let here = |host: &Host| match host {
                    Host::Address(address) => address.is_loopback(),
                    Host::Name(name) => name == "localhost",
                };
                let uri: Uri = format!("https://{server}/").parse().ok().filter(|_| !here(&server.host))?;
                Proxy::of_environment(&matcher.intercept(&uri)?)
            }
        }
    }
}

impl Proxy {
    fn parse(text: &str, password_file: Option<&PathBuf>) -> Result<Self, String> {
        let wrong = |detail: &str| format!("proxy: `{}` {detail}", without_login(text));
        let rest = text.strip_prefix("http://").ok_or_else(|| wrong(WANTS))?.trim_end_matches('/');
        let (user, authority) = rest.rsplit_once('@').map_or((None, rest), |(user, authority)| (Some(user), authority));
        let endpoint = Endpoint::of_proxy(authority).map_err(|_| wrong(WANTS))?;
        let login = match (user, password_file) {
            (Some(user), _) if user.contains(':') => {
                return Err(wrong(
                    "has a password in it, which others could read; put it into a file, name that as proxy_password_file, and leave `:PASSWORD` out",
                ));
            }
            (Some(user), Some(file)) => Login::User { name: user.to_owned(), password_file: file.clone() },
            (Some(_), None) => {
                return Err(wrong("names a user, whose password is needed: put it into a file and name that as proxy_password_file"));
            }
            (None, Some(_)) => return Err(wrong("names no user for the password of proxy_password_file; set http://USER@HOST:PORT")),
            (None, None) => Login::Nobody,
        };
        Ok(Self { endpoint, login, known_from: "the setting `proxy`" })
    }

    /// A proxy of another kind than HTTP is none that we could use; the log says so when nothing is reached.
    fn of_environment(intercept: &Intercept) -> Option<Self> {
        let uri = intercept.uri();
        if uri.scheme_str() != Some("http") {
            tracing::warn!(proxy = %uri, "the environment names a proxy that is not of the kind http://, and is not used");
            return None;
        }
        let authority = uri.authority()?;
        let with_port = if authority.port().is_some() { authority.to_string() } else { format!("{authority}:80") };
        let endpoint = Endpoint::of_proxy(&with_port).ok()?;
        let login = intercept.basic_auth().and_then(|value| value.to_str().ok());
        Some(Self {
            endpoint,
            login: login.map_or(Login::Nobody, |value| Login::Ready(value.to_owned())),
            known_from: "the environment (HTTPS_PROXY or ALL_PROXY; NO_PROXY makes exceptions)",
        })
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// From where it is known.
    pub(crate) fn known_from(&self) -> &'static str {
        self.known_from
    }

    /// Whether we say who we are.
    pub(crate) fn has_login(&self) -> bool {
        !matches!(self.login, Login::Nobody)
    }

    /// The header lines that say who we are (RFC 7617).
    pub(crate) fn lines(&self) -> Result<Vec<(HeaderName, String)>, String> {
        let value = match &self.login {
            Login::Nobody => return Ok(Vec::new()),
            Login::Ready(value) => value.clone(),
            Login::User { name, password_file } => {
                format!("Basic {}", BASE64.encode(format!("{name}:{}", password(password_file)?).as_bytes()))
            }
        };
        Ok(vec![(PROXY_AUTHORIZATION, value)])
    }

    /// The same proxy, as the client of the API wants it.
    pub(crate) fn for_https(&self) -> Result<ureq::Proxy, String> {
        let login = match &self.login {
            Login::Nobody => None,
            Login::Ready(value) => Some(user_and_password(value).ok_or("the environment's user and password cannot be read")?),
            Login::User { name, password_file } => Some((name.clone(), password(password_file)?)),
        };
        let at = self.endpoint.to_string();
        let host = at.rsplit_once(':').map_or(at.as_str(), |(host, _port)| host);
        let proxy = ureq::Proxy::builder(ureq::ProxyProtocol::Http).host(host).port(self.endpoint.port);
        let proxy = match login {
            Some((user, password)) => proxy.username(&user).password(&password),
            None => proxy,
        };
        proxy.build().map_err(|_| format!("{self} is no address of a proxy"))
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.endpoint)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

fn password(file: &Path) -> Result<String, String> {
    let text = files::read_if_exists(file).map_err(|error| format!("{error:#}"))?;
    let text = text.ok_or_else(|| format!("there is no file {}", file.display()))?;
    // Whoever writes a file by hand ends its line.
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// What the value of a header says (RFC 7617).
fn user_and_password(value: &str) -> Option<(String, String)> {
    let both = String::from_utf8(BASE64.decode(value.strip_prefix("Basic ")?.as_bytes()).ok()?).ok()?;
    let (user, password) = both.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// The address without what stands before its `@`.
pub(crate) fn without_login(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        (None, Some((_, rest))) => format!("…@{rest}"),
        (_, None) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::way::server::Server;

    fn of(matcher: Matcher, server: &str) -> Option<String> {
        Proxies::Environment(Box::new(matcher)).of(&server.parse::<Server>().unwrap().endpoint).map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_environment_is_read_as_curl_does_and_not_for_this_machine() {
        let matcher = || Matcher::builder().https("http://u:p@proxy.example:3128").no("corp.example,10.0.0.0/8").build();
        assert_eq!(of(matcher(), "tls://broker.example:4222").as_deref(), Some("http://proxy.example:3128"));
        assert_eq!(of(matcher(), "wss://broker.example/nats").as_deref(), Some("http://proxy.example:3128"));
        for direct in
            ["tls://broker.corp.example:4222", "tls://10.1.2.3:4222", "tls://127.0.0.1:4222", "wss://localhost", "tls://[::1]:4222"]
        {
            assert_eq!(of(matcher(), direct), None, "{direct}");
        }
        assert_eq!(of(Matcher::builder().https("socks5://proxy.example:1080").build(), "tls://broker.example:4222"), None);
        let proxy = Proxies::Environment(Box::new(matcher())).of(&"tls://b.example:1".parse::<Server>().unwrap().endpoint).unwrap();
        // `u:p` in base64.
        assert_eq!(proxy.lines().unwrap()[0].1, "Basic dTpw");
        assert!(!format!("{proxy:?} {proxy}").contains("dTpw"), "{proxy:?}");
        let for_https = proxy.for_https().unwrap();
        assert_eq!((for_https.host(), for_https.username(), for_https.password()), ("proxy.example", Some("u"), Some("p")));
    }

    #[test]
    fn a_proxy_that_cannot_be_right_is_refused_without_its_password() {
        let file = PathBuf::from("/run/secret");
        for (text, file, wrong) in [
            ("https://p:1", None, "must be http://HOST:PORT"),
            ("http://p", None, "must be http://HOST:PORT"),
            ("http://u:hunter2@p:1", Some(&file), "has a password in it"),
            ("http://u@p:1", None, "names a user, whose password is needed"),
            ("http://p:1", Some(&file), "names no user"),
        ] {
            let setting = ProxySetting { proxy: Some(text.to_owned()), proxy_password_file: file.cloned() };
            let refused = Proxies::new(&setting).unwrap_err();
            assert!(refused.contains(wrong) && refused.starts_with("proxy: `") && !refused.contains("hunter2"), "{refused}");
        }
        let alone = ProxySetting { proxy: None, proxy_password_file: Some(file) };
        assert!(Proxies::new(&alone).unwrap_err().starts_with("proxy_password_file: there is no proxy"));
        let none = ProxySetting { proxy: Some("none".to_owned()), proxy_password_file: None };
        assert!(Proxies::new(&none).unwrap().of(&Endpoint::of_proxy("b.example:1").unwrap()).is_none());
    }
}
