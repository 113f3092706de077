//! From one authority to the next, so that nobody is left outside: first everybody trusts both, then the broker shows a certificate of the new
//! one, then nobody trusts the old one.
//!
//! Clients read the authorities again at every connection, so no program is started again, and no connection that is there ends.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{authority_params, certificates, ensure, ensure_authority, new_key, read};
use crate::layout::Layout;
use crate::layout::files::{self, Secrecy};

/// How far a rotation has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One authority, which is in use.
    Settled,
    /// A second one is trusted and not yet used, for so long.
    Added {
        /// Since it was added.
        age: Duration,
    },
    /// It is used, and the one before is still trusted.
    Switched,
}

/// The stage of a data folder.
pub fn stage(layout: &Layout) -> Result<Stage> {
    if !layout.ca_key().exists() {
        bail!(
            "the broker's certificate was made elsewhere ({} is not there): add the new authority to {}, give the broker a certificate of it, \
             and take the old one out",
            layout.ca_key().display(),
            layout.ca_certificate().display()
        );
    }
    let added = std::fs::metadata(layout.next_ca_key()).and_then(|metadata| metadata.modified());
    let trusted = certificates(&layout.ca_certificate())?.len();
    Ok(match added {
        // A key without its certificate was left by an interruption, and is made again.
        Ok(at) if trusted > 1 => Stage::Added { age: SystemTime::now().duration_since(at).unwrap_or_default() },
        Ok(_) | Err(_) if trusted > 1 => Stage::Switched,
        Ok(_) | Err(_) => Stage::Settled,
    })
}

/// Makes the next authority, and has clients trust it beside the one in use. Returns what they must be given.
pub fn add(layout: &Layout) -> Result<PathBuf> {
    let present = read(&layout.ca_certificate())?;
    let key = new_key()?;
    let certificate = authority_params().self_signed(&key).context("cannot make the authority")?.pem();
    files::write(&layout.next_ca_key(), key.serialize_pem().as_bytes(), Secrecy::Secret)?;
    let both = format!("{}\n{certificate}", present.trim_end());
    files::write(&layout.ca_certificate(), both.as_bytes(), Secrecy::Public)?;
    Ok(layout.ca_certificate())
}

/// Signs the broker's certificate anew, by the authority that was added, for the names it has. The servers must then read it.
pub fn switch(layout: &Layout) -> Result<()> {
    let names = names(layout)?;
    std::fs::rename(layout.next_ca_key(), layout.ca_key()).with_context(|| format!("cannot rename {}", layout.next_ca_key().display()))?;
    ensure(layout, &names).map(drop)
}

/// Trusts nobody any more but the authority in use.
pub fn remove(layout: &Layout) -> Result<()> {
    // What is in use must hold before what is not goes.
    let names = names(layout)?;
    ensure(layout, &names)?;
    let (_, _, pem) = ensure_authority(layout)?;
    files::write(&layout.ca_certificate(), pem.as_bytes(), Secrecy::Public)
}

/// The names of the broker's certificate.
fn names(layout: &Layout) -> Result<Vec<String>> {
    let path = layout.server_certificate();
    let unreadable = || format!("cannot read the names in {}", path.display());
    let held = certificates(&path)?.into_iter().next().with_context(unreadable)?;
    let (_, parsed) = X509Certificate::from_der(&held).ok().with_context(unreadable)?;
    let extension = parsed.subject_alternative_name().ok().flatten().with_context(unreadable)?;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            (_, Ok(v6)) => Some(std::net::Ipv6Addr::from(v6).to_string()),
            (Err(_), Err(_)) => None,
        },
        _ => None,
    };
    Ok(extension.value.general_names.iter().filter_map(name).collect())
}
