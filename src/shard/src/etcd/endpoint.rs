//! The address of one etcd member, parsed once.

use std::{fmt, str::FromStr};

use tonic::Code;

use crate::{Certainty, ShardError};

/// `http://HOST:PORT` of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `HOST:PORT`, as `TcpStream::connect` takes it.
    pub(super) address: String,
}

impl Endpoint {
    /// What the member is called: the first part of its host's name, as a pod's is its own name, or its address.
    pub(super) fn name(&self) -> String {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        let is_address = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
        match host.split_once('.') {
            Some((name, _)) if !is_address => name.to_owned(),
            _ => self.address.clone(),
        }
    }

    /// The URI that requests carry as their origin.
    pub(super) fn origin(&self) -> http::Uri {
        http::Uri::builder()
            .scheme("http")
            .authority(self.address.as_str())
            .path_and_query("/")
            .build()
            .expect("an endpoint's address was parsed as an authority")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}", self.address)
    }
}

impl FromStr for Endpoint {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        if text.starts_with("https://") {
            return Err(invalid(format!("endpoint {text}: TLS to shards is not there yet, use http://")));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority = rest
            .parse()
            .map_err(|error| invalid(format!("endpoint {text:?} is not http://HOST:PORT: {error}")))?;
        if authority.port_u16().is_none() || authority.host().is_empty() || rest.contains('@') {
            return Err(invalid(format!("endpoint {text:?} is not http://HOST:PORT")));
        }
        Ok(Self { address: rest.to_owned() })
    }
}

/// An endpoint that cannot be used.
pub(super) fn invalid(message: impl Into<String>) -> ShardError {
    ShardError { code: Code::InvalidArgument, message: message.into(), certainty: Certainty::NotSent }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn accepts_plain_http_with_and_without_the_scheme() {
        for text in ["http://127.0.0.1:2379", "127.0.0.1:2379", "http://127.0.0.1:2379/"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.address, "127.0.0.1:2379");
            assert_eq!(endpoint.origin().to_string(), "http://127.0.0.1:2379/");
        }
        assert_eq!("http://[::1]:2379".parse::<Endpoint>().unwrap().address, "[::1]:2379");
        assert_eq!("demo-0.demo:2379".parse::<Endpoint>().unwrap().to_string(), "http://demo-0.demo:2379");
    }

    #[test]
    fn names_of_members() {
        let name = |text: &str| text.parse::<Endpoint>().unwrap().name();
        assert_eq!(name("http://demo-shard-0-1.demo-shard-0.ns.svc:2379"), "demo-shard-0-1");
        assert_eq!(name("127.0.0.1:2379"), "127.0.0.1:2379");
        assert_eq!(name("[::1]:2379"), "[::1]:2379");
    }

    #[test]
    fn refuses_what_it_could_not_connect_to() {
        for text in [
            "",
            "http://",
            "https://a:1",
            "a",
            "http://a",
            "a:1/path",
            "a:b",
            "user@a:1",
            "unix:///x",
            "a:70000",
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{text}: {error}");
            assert_eq!(error.certainty, Certainty::NotSent);
        }
    }
}
