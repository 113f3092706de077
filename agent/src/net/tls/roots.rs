//! The authorities that this machine trusts.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{Der, TrustAnchor};
use tokio::sync::OnceCell;

use super::{Anchors, Terms};

/// Read once, at the first handshake: an idle node does not hold them, and a new authority is seen when the agent starts again.
static MACHINE: OnceCell<Arc<RootCertStore>> = OnceCell::const_new();

/// The authorities that these terms trust.
pub(super) async fn of(terms: &Terms) -> Arc<RootCertStore> {
    let more = &terms.authorities;
    if terms.anchors == Anchors::Named {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(more.iter().cloned());
        return Arc::new(roots);
    }
    let machine = MACHINE.get_or_init(|| async { tokio::task::spawn_blocking(load).await.unwrap_or_else(|_| Arc::new(mozilla())) }).await;
    if more.is_empty() {
        return Arc::clone(machine);
    }
    let mut roots = RootCertStore { roots: machine.roots.iter().map(borrowed).collect() };
    roots.add_parsable_certificates(more.iter().cloned());
    Arc::new(roots)
}

/// The same authority, not a copy of it: there are more than a hundred, and a run that names one of its own needs all of them.
fn borrowed(anchor: &'static TrustAnchor<'static>) -> TrustAnchor<'static> {
    TrustAnchor {
        subject: Der::from_slice(&anchor.subject),
        subject_public_key_info: Der::from_slice(&anchor.subject_public_key_info),
        name_constraints: anchor.name_constraints.as_deref().map(Der::from_slice),
    }
}

/// Those of the system (or of `SSL_CERT_FILE`); Mozilla's where there are none, as in an image with nothing but the agent.
fn load() -> Arc<RootCertStore> {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(%error, "an authority of this machine cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    Arc::new(if added == 0 { mozilla() } else { roots })
}

fn mozilla() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}
