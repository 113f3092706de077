//! The broker's configuration, `server.conf`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::layout::Layout;
use crate::layout::files::{self, Secrecy};
use crate::permissions::AccountName;
use crate::tls::ServerCertificate;
use crate::vault::Vault;

const TEMPLATE: &str = include_str!("../server.conf.template");
/// What streams and buckets may take on disk unless told otherwise, in bytes.
pub const FILE_BYTES_MAX: u64 = 24 * 1024 * 1024 * 1024;
/// What they may take in memory unless told otherwise, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// One server of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Its name, unique in its cluster.
    pub server_name: String,
    /// Where clients connect over TLS.
    pub listen: SocketAddr,
    /// Where clients connect over WebSocket, if they may.
    pub websocket: Option<WebSocket>,
    /// The loopback port of its health and figures, if it has one.
    pub monitoring_port: Option<u16>,
    /// The broker's certificate.
    pub certificate: PathBuf,
    /// The private key of it.
    pub key: PathBuf,
    /// Where streams and buckets are kept.
    pub jetstream_dir: PathBuf,
    /// Where claims of accounts are kept.
    pub resolver_dir: PathBuf,
    /// Where servers of another operator connect that copy the audit trail, if any may.
    pub mirrors: Option<SocketAddr>,
    /// Where it logs; standard error when absent.
    pub log_file: Option<PathBuf>,
    /// What streams and buckets may take on disk, in bytes.
    pub file_bytes_max: u64,
    /// What they may take in memory, in bytes.
    pub memory_bytes_max: u64,
}

/// The WebSocket side of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebSocket {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who ends TLS.
    pub tls: TlsEnd,
}

/// Who ends TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsEnd {
    /// The server, with the broker's certificate.
    Server,
    /// A proxy before it, on a network that nobody else is on.
    Proxy,
}

impl ServerSettings {
    /// A server whose files lie in the data folder.
    pub fn in_layout(layout: &Layout, certificate: &ServerCertificate, listen: SocketAddr) -> Self {
        Self {
            server_name: "probeops".to_owned(),
            listen,
            websocket: None,
            monitoring_port: None,
            mirrors: None,
            certificate: certificate.certificate.clone(),
            key: certificate.key.clone(),
            jetstream_dir: layout.jetstream_dir(),
            resolver_dir: layout.resolver_dir(),
            log_file: Some(layout.server_log()),
            file_bytes_max: FILE_BYTES_MAX,
            memory_bytes_max: MEMORY_BYTES_MAX,
        }
    }

    /// Where its health and figures are.
    pub fn monitoring(&self) -> Option<SocketAddr> {
        self.monitoring_port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// The text of `server.conf`.
    pub fn render(&self, vault: &Vault) -> Result<String> {
        if self.listen.port() == 0
            || self.websocket.is_some_and(|websocket| websocket.listen.port() == 0)
            || self.monitoring_port == Some(0)
        {
            bail!("the broker's ports must be chosen before its configuration is written; 0 is not a port");
        }
        let websocket = |end: TlsEnd| self.websocket.filter(|websocket| websocket.tls == end).map(|_| String::new());
        let values = [
            ("server_name", Some(quotable("server name", &self.server_name)?)),
            ("listen", Some(self.listen.to_string())),
            ("certificate", Some(path("certificate", &self.certificate)?)),
            ("key", Some(path("key", &self.key)?)),
            ("websocket", self.websocket.map(|websocket| websocket.listen.to_string())),
            ("websocket_tls", websocket(TlsEnd::Server)),
            ("websocket_behind_proxy", websocket(TlsEnd::Proxy)),
            ("mirrors", self.mirrors.map(|address| address.to_string())),
            ("monitoring", self.monitoring().map(|address| address.to_string())),
            ("operator", Some(vault.operator_jwt()?)),
            ("system_account", Some(vault.account_key(AccountName::System).to_owned())),
            ("system_jwt", Some(vault.account_jwt(AccountName::System)?)),
            ("resolver_dir", Some(path("resolver folder", &self.resolver_dir)?)),
            ("jetstream_dir", Some(path("stream folder", &self.jetstream_dir)?)),
            ("memory_bytes_max", Some(self.memory_bytes_max.to_string())),
            ("file_bytes_max", Some(self.file_bytes_max.to_string())),
            ("log_file", self.log_file.as_deref().map(|file| path("log file", file)).transpose()?),
        ];
        render(&values)
    }

    /// Writes `server.conf`.
    pub fn write(&self, vault: &Vault, to: &Path) -> Result<()> {
        files::write(to, self.render(vault)?.as_bytes(), Secrecy::Public)
    }
}

fn path(what: &str, path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => quotable(what, text),
        None => bail!("the path of the {what}, {}, is not UTF-8; choose another data folder", path.display()),
    }
}

fn quotable(what: &str, text: &str) -> Result<String> {
    if text.is_empty() || text.chars().any(|c| c.is_control() || matches!(c, '"' | '\\')) {
        bail!(
            "the {what} `{}` cannot be written to server.conf: it is empty or has a quote, a backslash or a control character",
            text.escape_debug()
        );
    }
    Ok(text.to_owned())
}

/// Fills the template: `{{name}}` becomes its value; what stands between `#if name` and `#end` stays only if it has one.
fn render(values: &[(&str, Option<String>)]) -> Result<String> {
    let value = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
    let mut text = String::new();
    let mut open: Vec<bool> = Vec::new();
    for line in TEMPLATE.lines() {
        if let Some(name) = line.strip_prefix("#if ") {
            let Some(value) = value(name) else { bail!("server.conf.template asks for `{name}`, which is not known") };
            open.push(value.is_some());
        } else if line == "#end" {
            open.pop();
        } else if open.iter().all(|shown| *shown) {
            let mut filled = line.to_owned();
            while let Some((before, rest)) = filled.split_once("{{") {
                let Some((name, after)) = rest.split_once("}}") else { bail!("server.conf.template has `{{{{` without `}}}}`") };
                let Some(Some(value)) = value(name) else { bail!("server.conf.template asks for `{name}`, which has no value") };
                filled = format!("{before}{value}{after}");
            }
            text.push_str(&filled);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn settings(layout: &Layout) -> ServerSettings {
        let certificate = ServerCertificate { certificate: "/c.pem".into(), key: "/c.key".into(), authority: None };
        ServerSettings::in_layout(layout, &certificate, "0.0.0.0:4222".parse().unwrap())
    }

    #[test]
    fn what_is_not_asked_for_is_not_in_it() {
        let scratch = Scratch::new();
        let layout = Layout::new(scratch.path());
        let vault = Vault::open_or_create(&layout).unwrap();
        let plain = ServerSettings { log_file: None, ..settings(&layout) }.render(&vault).unwrap();
        for absent in ["websocket {", "leafnodes", "domain", "http:", "log_file", "{{", "#if", "#end", "no_auth_user", "mqtt"] {
            assert!(!plain.contains(absent), "{absent} in\n{plain}");
        }
        let sys = vault.account_key(AccountName::System);
        let preload = format!("resolver_preload: {{\n  {sys}: {}\n}}", vault.account_jwt(AccountName::System).unwrap());
        assert!(plain.contains(&preload), "only the system account is preloaded:\n{plain}");
        assert!(plain.contains("max_control_line: 16KB\nmax_payload: 1MB\n"), "{plain}");

        let websocket = |tls| Some(WebSocket { listen: "[::]:8443".parse().unwrap(), tls });
        let full = ServerSettings { websocket: websocket(TlsEnd::Server), monitoring_port: Some(8222), ..settings(&layout) };
        let text = full.render(&vault).unwrap();
        assert!(text.contains("listen: \"[::]:8443\"") && text.contains("http: \"127.0.0.1:8222\"") && !text.contains("no_tls"), "{text}");
        let proxied = ServerSettings { websocket: websocket(TlsEnd::Proxy), ..full }.render(&vault).unwrap();
        assert!(proxied.contains("no_tls: true") && proxied.matches("cert_file").count() == 1, "{proxied}");
        let mirrored = ServerSettings { mirrors: Some("[::]:7422".parse().unwrap()), ..settings(&layout) }.render(&vault).unwrap();
        assert!(mirrored.contains("listen: \"[::]:7422\"") && mirrored.contains("domain: \"probeops\""), "{mirrored}");
    }

    #[test]
    fn what_would_break_the_file_is_refused() {
        let scratch = Scratch::new();
        let layout = Layout::new(scratch.path());
        let vault = Vault::open_or_create(&layout).unwrap();
        let refused = ServerSettings { jetstream_dir: "/a\"b".into(), ..settings(&layout) }.render(&vault).unwrap_err().to_string();
        assert!(refused.starts_with("the stream folder `/a\\\"b` cannot be written to server.conf"), "{refused}");
        let port_0 = ServerSettings { listen: "127.0.0.1:0".parse().unwrap(), ..settings(&layout) }.render(&vault);
        assert!(port_0.unwrap_err().to_string().ends_with("0 is not a port"));
    }
}
