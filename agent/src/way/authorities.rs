//! The authorities that the broker's certificate may be of, as a file that the control plane can renew.

use std::path::Path;

use probeops_nats::layout::files::{self, Secrecy};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Keeps the authorities that the control plane sends, for the next connection to the broker; whether they differ from those there were.
/// What is not one or several whole certificates is refused and changes nothing, for without them the node would be outside for good.
pub fn store_ca(path: &Path, pem: &str) -> Result<bool, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certificates = read.unwrap_or_default();
    let (usable, unusable) = RootCertStore::empty().add_parsable_certificates(certificates);
    if usable == 0 || unusable > 0 {
        return Err(format!("the authorities for {} are not whole certificates in PEM form; those there were are kept", path.display()));
    }
    if files::read_if_exists(path).is_ok_and(|held| held.as_deref() == Some(pem)) {
        return Ok(false);
    }
    files::write(path, pem.as_bytes(), Secrecy::Public).map(|()| true).map_err(|error| format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_replaced_by_whole_ones_only() {
        let folder = std::env::temp_dir().join(format!("probeops-ca-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("ca.pem");
        let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.pem();
        let (one, two) = (made("one"), made("one") + &made("two"));
        assert!(store_ca(&path, &one).unwrap());
        assert!(!store_ca(&path, &one).unwrap(), "the same again");
        assert!(store_ca(&path, &two).unwrap());
        for broken in ["", "x", &one[..one.len() / 2], &(one.clone() + &two[..two.len() - 40])] {
            assert!(store_ca(&path, broken).unwrap_err().contains("not whole certificates"), "{broken}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), two);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
