//! HTTP client: redirects, retries with back-off, and resumable downloads.

use std::{
    fmt,
    fs::OpenOptions,
    io::{ErrorKind, Read, Write},
    path::Path,
    time::Duration,
};

use ureq::{
    Agent, Body,
    http::{HeaderMap, Method, Request, Response, Uri, header},
};

use super::ZooError;

/// Maximum number of redirects of one request. The Hub needs two.
const MAX_REDIRECTS: usize = 8;
/// Longest wait between two attempts. A server that asks for more is reported as an error.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// Longest wait of the exponential back-off.
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// Timeout of a connection, of a response and of each read of its body.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Size of the transfer buffer in bytes.
const BUFFER_SIZE: usize = 1 << 18;

/// Access token of the Hugging Face Hub. The `Debug` output hides it.
///
/// ```
/// use clip_model::zoo::Token;
///
/// let token = Token::new("hf_secret").unwrap();
/// assert_eq!(format!("{token:?}"), "Token(…)");
/// assert_eq!(Token::new(" "), None);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Progress of a file's download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Name of the file in the repository or the URL.
    pub file: &'a str,
    /// Downloaded bytes, including those of earlier calls.
    pub done: u64,
    /// Total bytes, if the server states them.
    pub total: Option<u64>,
}

impl Token {
    /// Returns a token with surrounding whitespace removed, or `None` for an empty one.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Failure of one attempt.
pub(super) enum Failure {
    /// A further attempt would fail too.
    Fatal(ZooError),
    /// A further attempt may succeed. The wait is the server's `Retry-After`, if any.
    Retryable(ZooError, Option<Duration>),
}

/// HTTP client for one endpoint and the servers it redirects to.
pub(super) struct Client<'a> {
    agent: Agent,
    endpoint: Uri,
    /// Sent to the endpoint only, not to servers it redirects to.
    token: Option<&'a Token>,
    policy: RetryPolicy,
    sleep: &'a mut dyn FnMut(Duration),
}

/// Number of retries and the wait between them.
#[derive(Clone, Copy)]
pub(super) struct RetryPolicy {
    /// Maximum number of attempts after a failed one.
    pub retries: u32,
    /// Wait before the first retry, doubled for each further one.
    pub backoff: Duration,
}

/// Source and destination of a download.
pub(super) struct Download<'a> {
    /// URL of the file.
    pub url: &'a Uri,
    /// Name of the file in progress reports.
    pub name: &'a str,
    /// Output file. An existing one is resumed.
    pub partial: &'a Path,
    /// Length of the whole file, if known.
    pub bytes: Option<u64>,
}

/// Metadata of a file in the Hub's response headers.
#[derive(Debug, Default)]
pub(super) struct RemoteMetadata {
    /// `X-Repo-Commit`.
    pub commit: Option<String>,
    /// `X-Linked-Etag`, else `ETag`, without quotes.
    pub etag: Option<String>,
    /// `X-Linked-Size`, else `Content-Length`.
    pub bytes: Option<u64>,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        endpoint: Uri,
        token: Option<&'a Token>,
        policy: RetryPolicy,
        sleep: &'a mut dyn FnMut(Duration),
    ) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // `send` follows redirects: it reads the headers of each hop and withholds the token
            // from other servers.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The length of a compressed body differs from that of the file.
            .accept_encoding("identity")
            .user_agent(concat!("clip-model/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT))
            .timeout_per_read(Some(TIMEOUT));
        if is_loopback(&endpoint) {
            config = config.proxy(None);
        }
        Self {
            agent: config.build().into(),
            endpoint,
            token,
            policy,
            sleep,
        }
    }

    /// Returns `true` if `url`, as shown in an error, has the origin of the endpoint.
    pub(super) fn is_endpoint(&self, url: &str) -> bool {
        url.parse()
            .is_ok_and(|url: Uri| origin(&url) == origin(&self.endpoint))
    }

    /// Repeats `attempt` until it succeeds or fails fatally, or the retries are exhausted.
    fn with_retries<T>(
        &mut self,
        mut attempt: impl FnMut(&Self) -> Result<T, Failure>,
    ) -> Result<T, ZooError> {
        let mut attempts = 1;
        loop {
            let (error, wait) = match attempt(self) {
                Ok(value) => return Ok(value),
                Err(Failure::Fatal(error)) => return Err(with_attempts(error, attempts)),
                Err(Failure::Retryable(error, wait)) => (error, wait),
            };
            let doubled = self
                .policy
                .backoff
                .saturating_mul(1 << (attempts - 1).min(16));
            let wait = wait.unwrap_or(doubled.min(MAX_BACKOFF));
            if attempts > self.policy.retries || wait > MAX_WAIT {
                return Err(with_attempts(error, attempts));
            }
            tracing::info!(%error, attempts, seconds = wait.as_secs_f64(), "retrying a request");
            (self.sleep)(wait);
            attempts += 1;
        }
    }

    /// Requests the metadata of a file on the Hub.
    ///
    /// The Hub states it in its own response, a redirect to a storage server without the
    /// repository's headers. Only redirects on the Hub itself are followed, as in
    /// `huggingface_hub/file_download.py`.
    ///
    /// # Errors
    /// [`ZooError::Status`], [`ZooError::RateLimited`], [`ZooError::Connection`] or
    /// [`ZooError::Answer`].
    pub(super) fn metadata(&mut self, url: &Uri) -> Result<RemoteMetadata, ZooError> {
        self.with_retries(|client| {
            let mut metadata = RemoteMetadata::default();
            let mut fallback = (None, None);
            client.send(Method::HEAD, url, 0, &mut |url, response| {
                let headers = response.headers();
                metadata.commit = metadata
                    .commit
                    .take()
                    .or(header_text(headers, "x-repo-commit"));
                metadata.etag = metadata
                    .etag
                    .take()
                    .or(header_text(headers, "x-linked-etag"));
                metadata.bytes = metadata.bytes.or(header_number(headers, "x-linked-size"));
                // In a redirect, these two headers describe the redirect itself.
                let redirect = response.status().is_redirection();
                if !redirect {
                    fallback = (
                        header_text(headers, "etag"),
                        header_number(headers, "content-length"),
                    );
                }
                redirect && origin(url) != origin(&client.endpoint)
            })?;
            metadata.etag = metadata.etag.or(fallback.0).map(|etag| strip_etag(&etag));
            metadata.bytes = metadata.bytes.or(fallback.1);
            Ok(metadata)
        })
    }

    /// Downloads a file, resuming an existing partial one. A broken connection keeps the partial
    /// file. A wrong range or excess bytes empty it.
    ///
    /// # Errors
    /// As [`metadata`](Self::metadata), and [`ZooError::Length`] when the announced or received
    /// length differs from the expected one, [`ZooError::Io`] when the file cannot be written.
    pub(super) fn download(
        &mut self,
        job: &Download<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), ZooError> {
        self.with_retries(|client| client.transfer(job, progress))
    }

    fn transfer(
        &self,
        job: &Download<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let io = |e| Failure::Fatal(ZooError::io(job.partial, e));
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(job.partial)
            .map_err(io)?;
        let mut written = file.metadata().map_err(io)?.len();
        // A longer partial file belongs to another version: start over.
        if job.bytes.is_some_and(|bytes| written > bytes) {
            file.set_len(0).map_err(io)?;
            written = 0;
        }
        if job.bytes == Some(written) {
            return Ok(());
        }

        let response = self.send(Method::GET, job.url, written, &mut |_, _| false)?;
        let total = match (
            response.status().as_u16(),
            content_range(response.headers()),
        ) {
            (206, Some((Some(start), total))) if start == written => total,
            (200, _) => {
                // The server does not support ranges and sends the whole file.
                file.set_len(0).map_err(io)?;
                written = 0;
                header_number(response.headers(), "content-length")
            }
            // The partial file is already complete.
            (416, Some((None, Some(total)))) if total == written => return Ok(()),
            (status, _) => {
                file.set_len(0).map_err(io)?;
                let reason = format!(
                    "status {status} does not answer a request for bytes from {written} on"
                );
                return Err(Failure::Retryable(invalid_response(job.url, reason), None));
            }
        };
        let length = |expected, found| {
            Failure::Fatal(ZooError::Length {
                file: job.name.to_owned(),
                expected,
                found,
            })
        };
        if let (Some(expected), Some(total)) = (job.bytes, total)
            && expected != total
        {
            return Err(length(expected, total));
        }
        let total = job.bytes.or(total);

        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_SIZE];
        loop {
            progress(Progress {
                file: job.name,
                done: written,
                total,
            });
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(interrupted(job.url, &e.to_string(), written, total)),
            };
            written += n as u64;
            // More bytes than announced: the content is not trustworthy.
            if let Some(total) = total
                && written > total
            {
                file.set_len(0).map_err(io)?;
                return Err(length(total, written));
            }
            file.write_all(&buffer[..n]).map_err(io)?;
        }
        if total.is_some_and(|total| written < total) {
            return Err(interrupted(job.url, "the response ended", written, total));
        }
        file.sync_all().map_err(io)
    }

    /// Sends a request and follows its redirects. `stop_at` receives each response with its URL, or
    /// for a redirect the target, and returns `true` to stop there.
    fn send(
        &self,
        method: Method,
        url: &Uri,
        from: u64,
        stop_at: &mut dyn FnMut(&Uri, &Response<Body>) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(&method, &url, from)?;
            let target = response
                .status()
                .is_redirection()
                .then(|| header_text(response.headers(), header::LOCATION.as_str()))
                .flatten();
            let next = target
                .as_deref()
                .map(|location| resolve_location(&url, location));
            // `stop_at` gets the target of a redirect, to stop before another server.
            let target_url = match &next {
                Some(Some(next)) => next,
                _ => &url,
            };
            if stop_at(target_url, &response) {
                return Ok(response);
            }
            match next {
                None => return classify_response(&url, from, response),
                Some(Some(next)) => {
                    if is_downgrade(&url, &next) {
                        let reason = "redirects from https to plain http".to_owned();
                        return Err(Failure::Fatal(invalid_response(&url, reason)));
                    }
                    url = next;
                }
                Some(None) => {
                    let reason = "redirects to something that is not a URL".to_owned();
                    return Err(Failure::Fatal(invalid_response(&url, reason)));
                }
            }
        }
        let reason = format!("redirects more than {MAX_REDIRECTS} times");
        Err(Failure::Fatal(invalid_response(&url, reason)))
    }

    fn send_once(&self, method: &Method, url: &Uri, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(url);
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = self.token
            && may_send_token(url, &self.endpoint)
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        let request = request.body(()).map_err(|_| {
            // The cause would show the header, and with it the token.
            Failure::Fatal(invalid_response(
                url,
                "the URL or the token is not valid".to_owned(),
            ))
        })?;
        self.agent.run(request).map_err(|error| {
            let error = ZooError::Connection {
                url: redacted(url),
                reason: describe(&error),
                attempts: 1,
            };
            Failure::Retryable(error, None)
        })
    }
}

/// Classifies a response that is not a redirect as success, fatal or retryable.
fn classify_response(
    url: &Uri,
    from: u64,
    response: Response<Body>,
) -> Result<Response<Body>, Failure> {
    let status = response.status().as_u16();
    let retry_after = header_number(response.headers(), header::RETRY_AFTER.as_str());
    let wait = retry_after.map(Duration::from_secs);
    let error = ZooError::Status {
        url: redacted(url),
        status,
        attempts: 1,
    };
    match status {
        200..=299 => Ok(response),
        416 if from > 0 => Ok(response),
        429 => {
            let error = ZooError::RateLimited {
                host: host(url),
                retry_after,
                attempts: 1,
            };
            Err(Failure::Retryable(error, wait))
        }
        408 | 500..=599 => Err(Failure::Retryable(error, wait)),
        _ => Err(Failure::Fatal(error)),
    }
}

/// Returns the error with its number of attempts set.
fn with_attempts(mut error: ZooError, count: u32) -> ZooError {
    match &mut error {
        ZooError::RateLimited { attempts, .. }
        | ZooError::Status { attempts, .. }
        | ZooError::Connection { attempts, .. } => *attempts = count,
        _ => (),
    }
    error
}

fn interrupted(url: &Uri, reason: &str, written: u64, total: Option<u64>) -> Failure {
    let of = total.map_or(String::new(), |total| format!(" of {total}"));
    let error = ZooError::Connection {
        url: redacted(url),
        reason: format!("broke off after {written}{of} bytes ({reason})"),
        attempts: 1,
    };
    Failure::Retryable(error, None)
}

fn invalid_response(url: &Uri, reason: String) -> ZooError {
    ZooError::Answer {
        url: redacted(url),
        reason,
    }
}

/// Returns a message without secrets: some of ureq's messages contain the URL or the proxy.
fn describe(error: &ureq::Error) -> String {
    use ureq::Error as E;
    match error {
        E::Io(e) => e.to_string(),
        E::HostNotFound => "the host is not known".to_owned(),
        E::Timeout(_) => "no answer in time".to_owned(),
        E::Protocol(_) | E::Tls(_) | E::Rustls(_) | E::ConnectionFailed => error.to_string(),
        _ => "the request failed".to_owned(),
    }
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

fn header_number(headers: &HeaderMap, name: &str) -> Option<u64> {
    header_text(headers, name)?.parse().ok()
}

/// Parses `Content-Range`: `bytes 5-9/10` → `(5, 10)`; `bytes */10` → `(-, 10)`.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let text = header_text(headers, header::CONTENT_RANGE.as_str())?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range
        .split_once('-')
        .and_then(|(start, _)| start.parse().ok());
    Some((start, total.parse().ok()))
}

/// Strips the quotes and the fallback prefix of an ETag: `W/"abc"` → `abc`.
fn strip_etag(etag: &str) -> String {
    let strong = etag.strip_prefix("W/").unwrap_or(etag);
    strong.trim_matches('"').to_owned()
}

/// Resolves a `Location` header against the URL of its response.
fn resolve_location(base: &Uri, location: &str) -> Option<Uri> {
    let origin = format!("{}://{}", base.scheme_str()?, base.authority()?);
    let absolute = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}:{location}", base.scheme_str()?)
    } else if location.starts_with('/') {
        format!("{origin}{location}")
    } else {
        let folder = base
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{origin}{folder}/{location}")
    };
    absolute
        .parse()
        .ok()
        .filter(|url: &Uri| url.host().is_some())
}

/// Returns scheme, host and port. Only URLs of the same origin may receive a token.
fn origin(url: &Uri) -> (Option<&str>, Option<String>, Option<u16>) {
    let default = if url.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let host = url.host().map(str::to_ascii_lowercase);
    (
        url.scheme_str(),
        host,
        Some(url.port_u16().unwrap_or(default)),
    )
}

/// Returns `true` if the token may be sent to `url`: never to another server, which a redirect may
/// lead to, and never over plain http, where it could be intercepted.
fn may_send_token(url: &Uri, endpoint: &Uri) -> bool {
    let private = url.scheme_str() == Some("https") || is_loopback(url);
    private && origin(url) == origin(endpoint)
}

/// Returns `true` for a redirect from https to plain http, where an attacker on the path could
/// redirect the request further.
fn is_downgrade(from: &Uri, to: &Uri) -> bool {
    from.scheme_str() == Some("https") && to.scheme_str() != Some("https")
}

fn is_loopback(url: &Uri) -> bool {
    matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

/// Returns a URL without user, password and query.
pub(super) fn redacted(url: &Uri) -> String {
    format!(
        "{}://{}{}",
        url.scheme_str().unwrap_or("?"),
        host(url),
        url.path()
    )
}

/// Returns host and port.
pub(super) fn host(url: &Uri) -> String {
    let host = url.host().unwrap_or("?");
    url.port_u16()
        .map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn locations_are_resolved() {
        let base = uri("https://hub.example:8443/o/n/resolve/main/f?x=1");
        let joined = |location: &str| resolve_location(&base, location).map(|url| url.to_string());
        for (location, url) in [
            ("https://cdn.example/b?key=2", "https://cdn.example/b?key=2"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/api/b", "https://hub.example:8443/api/b"),
            ("g", "https://hub.example:8443/o/n/resolve/main/g"),
        ] {
            assert_eq!(joined(location).as_deref(), Some(url));
        }
        assert_eq!(joined("https://"), None);
        assert_eq!(joined("/a b"), None);
    }

    #[test]
    fn redacted_url_contains_no_secret() {
        let url = uri("https://me:secret@example.org:1/a/b?signature=secret");
        assert_eq!(redacted(&url), "https://example.org:1/a/b");
    }

    #[test]
    fn origins_differ_by_scheme_host_or_port() {
        let same = |a: &str, b: &str| origin(&uri(a)) == origin(&uri(b));
        assert!(same("https://A.example/x", "https://a.example:443/y"));
        assert!(!same("https://a.example/", "http://a.example/"));
        assert!(!same("https://a.example/", "https://a.example.evil/"));
        assert!(!same("http://127.0.0.1:1/", "http://127.0.0.1:2/"));
    }

    #[test]
    fn token_is_sent_to_its_origin_over_https_only() {
        let may = |url: &str, endpoint: &str| may_send_token(&uri(url), &uri(endpoint));
        assert!(may("https://hub.example/a", "https://hub.example"));
        assert!(may("http://127.0.0.1:1/a", "http://127.0.0.1:1"));
        assert!(!may("http://hub.example/a", "http://hub.example"));
        assert!(!may("https://cdn.example/a", "https://hub.example"));
        assert!(!may("http://hub.example:443/a", "https://hub.example"));
    }

    #[test]
    fn redirect_to_plain_http_is_a_downgrade() {
        let leaves = |from: &str, to: &str| is_downgrade(&uri(from), &uri(to));
        assert!(leaves("https://a.example", "http://a.example"));
        assert!(!leaves("https://a.example", "https://b.example"));
        assert!(!leaves("http://a.example", "http://b.example"));
    }

    #[test]
    fn content_range_and_etag_are_parsed() {
        let range = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, value.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(range("bytes */10"), Some((None, Some(10))));
        assert_eq!(range("lines 5-9/10"), None);
        assert_eq!(strip_etag("W/\"abc\""), "abc");
        assert_eq!(strip_etag("abc"), "abc");
    }
}
