//! An HTTP server on this machine for tests: each request is answered by a function, and kept.

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

/// The commit that [`hub`] says its files are of.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a client asked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// How many requests of this method came before.
    pub nth: usize,
}

impl Request {
    /// The first byte that is asked for.
    pub fn from(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }
}

/// What the server answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// The body, or as much of it as is asked for.
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
        let reply = Self {
            body: body[from..].to_vec(),
            ..Self::new(206)
        };
        reply.with(
            "Content-Range",
            &format!("bytes {from}-{}/{total}", total - 1),
        )
    }

    /// Sets a header, in place of one of that name.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same headers as a redirect; the `Location` is among them.
    pub fn moved(self) -> Self {
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

/// What the Hub answers for a large file: its own headers, then the content.
pub(super) fn hub(request: &Request, content: &[u8]) -> Reply {
    Reply::body(request, content)
        .with("X-Repo-Commit", COMMIT)
        .with("X-Linked-Etag", &format!("\"{}\"", sha256(content)))
        .with("X-Linked-Size", &content.len().to_string())
}

pub(super) fn sha256(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

/// A running server; it stops when dropped.
pub(super) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (requests.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away is part of what is tested.
                let _ = stream.and_then(|stream| serve(stream, &kept, &answer));
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

    /// Requests for content.
    pub fn gets(&self) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|r| !r.is_head());
        requests
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, which then sees that it is to stop.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    kept: &Mutex<Vec<Request>>,
    answer: &impl Fn(&Request) -> Reply,
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
    let mut kept = kept.lock().unwrap();
    let nth = kept.iter().filter(|r| r.method == method).count();
    let request = Request {
        method,
        path,
        headers,
        nth,
    };
    kept.push(request.clone());
    drop(kept);

    let mut reply = answer(&request);
    if !reply
        .headers
        .iter()
        .any(|(name, _)| name == "Content-Length")
    {
        let length = reply.body.len().to_string();
        reply = reply.with("Content-Length", &length);
    }
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if !request.is_head() {
        let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        stream.write_all(&reply.body[..end])?;
    }
    stream.flush()
}
