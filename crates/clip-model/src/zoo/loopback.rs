//! Local HTTP server for tests, with a function as request handler and a log of all requests.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use sha2::{Digest, Sha256};

/// Commit in the headers of [`hub`].
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Request of a client.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Number of earlier requests with the same method.
    pub nth: usize,
}

impl Request {
    /// Returns the start of the requested byte range.
    pub fn from(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }
}

/// Response of the server.
#[derive(Debug, Clone, Default)]
pub(super) struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Number of bytes of the body after which the connection is closed.
    pub cut: Option<usize>,
}

impl Response {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// Returns a response with the body, or with the requested range of it.
    pub fn body(request: &Request, body: &[u8]) -> Self {
        let Some(from) = request.from() else {
            return Self {
                body: body.to_vec(),
                ..Self::new(200)
            };
        };
        let total = body.len();
        if from >= total {
            return Self::new(416).with("Content-Range", &format!("bytes */{total}"));
        }
        let response = Self {
            body: body[from..].to_vec(),
            ..Self::new(206)
        };
        response.with(
            "Content-Range",
            &format!("bytes {from}-{}/{total}", total - 1),
        )
    }

    /// Sets a header, replacing one of the same name.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Turns the response into a redirect with the same headers, `Location` among them.
    pub fn redirect(self) -> Self {
        Self {
            status: 302,
            body: Vec::new(),
            ..self
        }
    }

    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }
}

/// Returns the response of the Hub for a large file: its own headers and the content.
pub(super) fn hub(request: &Request, content: &[u8]) -> Response {
    Response::body(request, content)
        .with("X-Repo-Commit", COMMIT)
        .with("X-Linked-Etag", &format!("\"{}\"", sha256(content)))
        .with("X-Linked-Size", &content.len().to_string())
}

pub(super) fn sha256(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

/// Running server, stopped on drop.
pub(super) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Response + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (requests.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // Tests close connections early, so errors of a connection are expected.
                let _ = stream.and_then(|stream| serve(stream, &log, &handler));
            }
        });
        Self {
            address,
            requests,
            stop,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the requests for content.
    pub fn gets(&self) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|r| !r.is_head());
        requests
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // `accept` blocks: connect once, so that the thread reads the flag.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    handler: &impl Fn(&Request) -> Response,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let Some(first) = lines.next().transpose()? else {
        return Ok(());
    };
    let mut words = first.split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut log = log.lock().unwrap();
    let nth = log.iter().filter(|r| r.method == method).count();
    let request = Request {
        method,
        path,
        headers,
        nth,
    };
    log.push(request.clone());
    drop(log);

    let mut response = handler(&request);
    if !response
        .headers
        .iter()
        .any(|(name, _)| name == "Content-Length")
    {
        let length = response.body.len().to_string();
        response = response.with("Content-Length", &length);
    }
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", response.status);
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if !request.is_head() {
        let end = response
            .cut
            .unwrap_or(response.body.len())
            .min(response.body.len());
        stream.write_all(&response.body[..end])?;
    }
    stream.flush()
}
