//! Requests over HTTP: redirects, what to try again and when, and downloads that go on where an
//! earlier one broke off.

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

/// Redirects of one request; the Hub needs two.
const MAX_REDIRECTS: usize = 8;
/// Longest wait between two attempts: a server that asks for more is reported instead.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// Longest wait of a back-off.
const LONGEST_BACKOFF: Duration = Duration::from_secs(20);
/// Time for a connection, an answer or the next bytes of one; a server that is silent for longer
/// counts as gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes that are read and written at a time.
const PIECE: usize = 1 << 18;

/// An access token of the Hugging Face Hub. Its `Debug` output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// How far a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file, under its name in the repository or the URL.
    pub file: &'a str,
    /// Bytes on this machine, those of earlier calls included.
    pub done: u64,
    /// Bytes in all, when the server says.
    pub total: Option<u64>,
}

impl Token {
    /// A token, unless the text is empty.
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

/// Why an attempt failed.
pub(super) enum Failure {
    /// Another attempt would fail too.
    Final(ZooError),
    /// Another attempt may succeed, after this time if the server named one.
    Passing(ZooError, Option<Duration>),
}

/// Sends requests to one server and those it redirects to.
pub(super) struct Client<'a> {
    agent: Agent,
    home: Uri,
    token: Option<&'a Token>,
    retries: u32,
    backoff: Duration,
    sleep: &'a mut dyn FnMut(Duration),
}

/// How a [`Client`] behaves.
#[derive(Clone, Copy)]
pub(super) struct Manners<'a> {
    /// Told to the server itself, not to those it redirects to.
    pub token: Option<&'a Token>,
    /// Further attempts after a failed one.
    pub retries: u32,
    /// Wait before the first of them; doubled each time.
    pub backoff: Duration,
}

/// What to download, and where to.
pub(super) struct Download<'a> {
    /// Where it is.
    pub url: &'a Uri,
    /// What progress reports call it.
    pub name: &'a str,
    /// The file that is written, and gone on with when it is there.
    pub partial: &'a Path,
    /// Its length, if known.
    pub bytes: Option<u64>,
}

/// What the Hub says about a file, before it is downloaded.
#[derive(Debug, Default)]
pub(super) struct Stated {
    /// `X-Repo-Commit`.
    pub commit: Option<String>,
    /// `X-Linked-Etag`, else `ETag`, without quotes.
    pub etag: Option<String>,
    /// `X-Linked-Size`, else `Content-Length`.
    pub bytes: Option<u64>,
}

impl<'a> Client<'a> {
    pub(super) fn new(home: Uri, manners: Manners<'a>, sleep: &'a mut dyn FnMut(Duration)) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed by hand: the headers of each hop matter, and so does who gets the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A compressed body has another length than the file.
            .accept_encoding("identity")
            .user_agent(concat!("clip-model/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        if is_this_machine(&home) {
            config = config.proxy(None);
        }
        Self {
            agent: config.build().into(),
            home,
            token: manners.token,
            retries: manners.retries,
            backoff: manners.backoff,
            sleep,
        }
    }

    /// Whether `url`, as shown in an error, is on the server this client is for.
    pub(super) fn is_home(&self, url: &str) -> bool {
        url.parse()
            .is_ok_and(|url: Uri| origin(&url) == origin(&self.home))
    }

    /// Makes attempts until one succeeds, fails for good, or there were enough.
    fn retrying<T>(
        &mut self,
        mut attempt: impl FnMut(&Self) -> Result<T, Failure>,
    ) -> Result<T, ZooError> {
        let mut attempts = 1;
        loop {
            let (error, wait) = match attempt(self) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(counted(error, attempts)),
                Err(Failure::Passing(error, wait)) => (error, wait),
            };
            let doubled = self.backoff.saturating_mul(1 << (attempts - 1).min(16));
            let wait = wait.unwrap_or(doubled.min(LONGEST_BACKOFF));
            if attempts > self.retries || wait > LONGEST_WAIT {
                return Err(counted(error, attempts));
            }
            (self.sleep)(wait);
            attempts += 1;
        }
    }

    /// Asks for the headers of a file on the Hub.
    ///
    /// The Hub states them in its own answer, which redirects to a server that knows nothing of the
    /// repository; only redirects on the Hub itself are followed, as in
    /// `huggingface_hub/file_download.py`.
    ///
    /// # Errors
    /// [`ZooError::Status`], [`ZooError::RateLimited`], [`ZooError::Connection`] or
    /// [`ZooError::Answer`].
    pub(super) fn stated(&mut self, url: &Uri) -> Result<Stated, ZooError> {
        self.retrying(|client| {
            let mut stated = Stated::default();
            let mut weak = (None, None);
            client.send(Method::HEAD, url, 0, &mut |url, response| {
                let headers = response.headers();
                stated.commit = stated.commit.take().or(text(headers, "x-repo-commit"));
                stated.etag = stated.etag.take().or(text(headers, "x-linked-etag"));
                stated.bytes = stated.bytes.or(number(headers, "x-linked-size"));
                // Of a redirect, these describe the redirect.
                let redirect = response.status().is_redirection();
                if !redirect {
                    weak = (text(headers, "etag"), number(headers, "content-length"));
                }
                redirect && origin(url) != origin(&client.home)
            })?;
            stated.etag = stated.etag.or(weak.0).map(|etag| unquoted(&etag));
            stated.bytes = stated.bytes.or(weak.1);
            Ok(stated)
        })
    }

    /// Downloads a file, going on where the partial one ends. The partial file stays when this
    /// fails.
    ///
    /// # Errors
    /// As [`stated`](Self::stated), and [`ZooError::Length`] when the server announces or sends
    /// another length than expected, [`ZooError::Io`] when the file cannot be written.
    pub(super) fn download(
        &mut self,
        job: &Download<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), ZooError> {
        self.retrying(|client| client.transfer(job, progress))
    }

    fn transfer(
        &self,
        job: &Download<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let io = |e| Failure::Final(ZooError::io(job.partial, e));
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(job.partial)
            .map_err(io)?;
        let mut have = file.metadata().map_err(io)?.len();
        if job.bytes.is_some_and(|bytes| have > bytes) {
            file.set_len(0).map_err(io)?;
            have = 0;
        }
        if job.bytes == Some(have) {
            return Ok(());
        }

        let response = self.send(Method::GET, job.url, have, &mut |_, _| false)?;
        let total = match (
            response.status().as_u16(),
            content_range(response.headers()),
        ) {
            (206, Some((Some(start), total))) if start == have => total,
            (200, _) => {
                // The server does not know ranges: all of it comes again.
                file.set_len(0).map_err(io)?;
                have = 0;
                number(response.headers(), "content-length")
            }
            // The partial file is already as long as the whole.
            (416, Some((None, Some(total)))) if total == have => return Ok(()),
            (status, _) => {
                file.set_len(0).map_err(io)?;
                let reason =
                    format!("status {status} does not answer a request for bytes from {have} on");
                return Err(Failure::Passing(answer(job.url, reason), None));
            }
        };
        let length = |expected, found| {
            Failure::Final(ZooError::Length {
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
        let mut piece = vec![0; PIECE];
        loop {
            progress(Progress {
                file: job.name,
                done: have,
                total,
            });
            let n = match reader.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(broken(job.url, &e.to_string(), have, total)),
            };
            have += n as u64;
            if let Some(total) = total
                && have > total
            {
                file.set_len(0).map_err(io)?;
                return Err(length(total, have));
            }
            file.write_all(&piece[..n]).map_err(io)?;
        }
        if total.is_some_and(|total| have < total) {
            return Err(broken(job.url, "the answer ended", have, total));
        }
        file.sync_all().map_err(io)
    }

    /// Sends a request and follows its redirects. `look` sees each answer and says whether to stop
    /// there.
    fn send(
        &self,
        method: Method,
        url: &Uri,
        from: u64,
        look: &mut dyn FnMut(&Uri, &Response<Body>) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(&method, &url, from)?;
            let target = response
                .status()
                .is_redirection()
                .then(|| text(response.headers(), header::LOCATION.as_str()))
                .flatten();
            let next = target.as_deref().map(|location| join(&url, location));
            // Looked at with the address it leads to: whether that is elsewhere decides if it is
            // followed.
            let seen = match &next {
                Some(Some(next)) => next,
                _ => &url,
            };
            if look(seen, &response) {
                return Ok(response);
            }
            match next {
                None => return judged(&url, from, response),
                Some(Some(next)) => {
                    if leaves_https(&url, &next) {
                        let reason = "redirects from https to plain http".to_owned();
                        return Err(Failure::Final(answer(&url, reason)));
                    }
                    url = next;
                }
                Some(None) => {
                    let reason = "redirects to something that is not a URL".to_owned();
                    return Err(Failure::Final(answer(&url, reason)));
                }
            }
        }
        let reason = format!("redirects more than {MAX_REDIRECTS} times");
        Err(Failure::Final(answer(&url, reason)))
    }

    fn send_once(&self, method: &Method, url: &Uri, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(url);
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = self.token
            && may_have_token(url, &self.home)
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        let request = request.body(()).map_err(|_| {
            // The cause would show the header, and with it the token.
            Failure::Final(answer(url, "the URL or the token is not valid".to_owned()))
        })?;
        self.agent.run(request).map_err(|error| {
            let error = ZooError::Connection {
                url: shown(url),
                reason: described(&error),
                attempts: 1,
            };
            Failure::Passing(error, None)
        })
    }
}

/// Sorts an answer that is no redirect.
fn judged(url: &Uri, from: u64, response: Response<Body>) -> Result<Response<Body>, Failure> {
    let status = response.status().as_u16();
    let asked = number(response.headers(), header::RETRY_AFTER.as_str());
    let wait = asked.map(Duration::from_secs);
    let error = ZooError::Status {
        url: shown(url),
        status,
        attempts: 1,
    };
    match status {
        200..=299 => Ok(response),
        416 if from > 0 => Ok(response),
        429 => {
            let error = ZooError::RateLimited {
                host: host(url),
                retry_after: asked,
                attempts: 1,
            };
            Err(Failure::Passing(error, wait))
        }
        408 | 500..=599 => Err(Failure::Passing(error, wait)),
        _ => Err(Failure::Final(error)),
    }
}

/// The error with the number of attempts that led to it.
fn counted(mut error: ZooError, count: u32) -> ZooError {
    match &mut error {
        ZooError::RateLimited { attempts, .. }
        | ZooError::Status { attempts, .. }
        | ZooError::Connection { attempts, .. } => *attempts = count,
        _ => (),
    }
    error
}

fn broken(url: &Uri, reason: &str, have: u64, total: Option<u64>) -> Failure {
    let of = total.map_or(String::new(), |total| format!(" of {total}"));
    let error = ZooError::Connection {
        url: shown(url),
        reason: format!("broke off after {have}{of} bytes ({reason})"),
        attempts: 1,
    };
    Failure::Passing(error, None)
}

fn answer(url: &Uri, reason: String) -> ZooError {
    ZooError::Answer {
        url: shown(url),
        reason,
    }
}

/// What happened, without what may be secret: some of ureq's messages repeat the URL or the proxy.
fn described(error: &ureq::Error) -> String {
    use ureq::Error as E;
    match error {
        E::Io(e) => e.to_string(),
        E::HostNotFound => "the host is not known".to_owned(),
        E::Timeout(_) => "no answer in time".to_owned(),
        E::Protocol(_) | E::Tls(_) | E::Rustls(_) | E::ConnectionFailed => error.to_string(),
        _ => "the request failed".to_owned(),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// `bytes 5-9/10` → `(5, 10)`; `bytes */10` → `(-, 10)`.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let text = text(headers, header::CONTENT_RANGE.as_str())?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range
        .split_once('-')
        .and_then(|(start, _)| start.parse().ok());
    Some((start, total.parse().ok()))
}

/// `W/"abc"` → `abc`.
fn unquoted(etag: &str) -> String {
    let strong = etag.strip_prefix("W/").unwrap_or(etag);
    strong.trim_matches('"').to_owned()
}

/// The URL that a `Location` header means.
fn join(base: &Uri, location: &str) -> Option<Uri> {
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

/// Scheme, host and port: what may share a token.
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

/// A redirect leads to servers that the token is not for; plain http would show it to everyone on
/// the way.
fn may_have_token(url: &Uri, home: &Uri) -> bool {
    let private = url.scheme_str() == Some("https") || is_this_machine(url);
    private && origin(url) == origin(home)
}

/// Someone on the way could lead the request elsewhere from there.
fn leaves_https(from: &Uri, to: &Uri) -> bool {
    from.scheme_str() == Some("https") && to.scheme_str() != Some("https")
}

fn is_this_machine(url: &Uri) -> bool {
    matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

/// A URL without user, password and query.
pub(super) fn shown(url: &Uri) -> String {
    format!(
        "{}://{}{}",
        url.scheme_str().unwrap_or("?"),
        host(url),
        url.path()
    )
}

/// Host and port.
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
        let joined = |location: &str| join(&base, location).map(|url| url.to_string());
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
    fn what_is_shown_of_a_url_holds_no_secret() {
        let url = uri("https://me:secret@example.org:1/a/b?signature=secret");
        assert_eq!(shown(&url), "https://example.org:1/a/b");
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
    fn tokens_stay_on_one_server_and_off_plain_http() {
        let may = |url: &str, home: &str| may_have_token(&uri(url), &uri(home));
        assert!(may("https://hub.example/a", "https://hub.example"));
        assert!(may("http://127.0.0.1:1/a", "http://127.0.0.1:1"));
        assert!(!may("http://hub.example/a", "http://hub.example"));
        assert!(!may("https://cdn.example/a", "https://hub.example"));
        assert!(!may("http://hub.example:443/a", "https://hub.example"));
    }

    #[test]
    fn https_is_not_left() {
        let leaves = |from: &str, to: &str| leaves_https(&uri(from), &uri(to));
        assert!(leaves("https://a.example", "http://a.example"));
        assert!(!leaves("https://a.example", "https://b.example"));
        assert!(!leaves("http://a.example", "http://b.example"));
    }

    #[test]
    fn ranges_and_tags_are_read() {
        let range = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, value.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(range("bytes */10"), Some((None, Some(10))));
        assert_eq!(range("lines 5-9/10"), None);
        assert_eq!(unquoted("W/\"abc\""), "abc");
        assert_eq!(unquoted("abc"), "abc");
    }
}
