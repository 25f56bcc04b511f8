//! The client port.

use std::io;

use tokio::net::TcpListener;

use crate::cli::{AddressError, host_port};

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address makes no sense.
    #[error("--listen")]
    Address(#[from] AddressError),
    /// Another program has the port.
    #[error("{0} is in use by another program: stop that one, or give another address with --listen")]
    InUse(String),
    /// The system refuses.
    #[error("cannot listen on {address}: give another address with --listen")]
    Refused {
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Listens on an address.
///
/// # Errors
/// See [`ListenError`].
pub async fn listen(address: &str) -> Result<TcpListener, ListenError> {
    let address = host_port(address)?;
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address.to_owned()),
        _ => ListenError::Refused { address: address.to_owned(), source },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = listen("127.0.0.1:0").await.unwrap();
        let address = first.local_addr().unwrap().to_string();
        let error = listen(&address).await.unwrap_err();
        assert!(matches!(&error, ListenError::InUse(named) if *named == address), "{error}");
        assert!(matches!(listen("nowhere").await, Err(ListenError::Address(_))));
        // TEST-NET-1: no address of this machine.
        assert!(matches!(listen("192.0.2.1:1").await, Err(ListenError::Refused { .. })));
    }
}
