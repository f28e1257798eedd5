//! Tests of [`fetch`](super::fetch()) against conforming and faulty local servers.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    Cache, Check, Entry, FetchOptions, Fetched, Layout, Progress, Registry, Role, Token, ZooError,
    fetch::fetch_with,
    loopback::{COMMIT, Response, Server, hub, sha256},
};

const ENTRY: &str = "[[model]]\nname = 'a/b'\narchitecture = 'ViT-B-16'\n\
    preprocess = { size = 224, mean = [0, 0, 0], std = [1, 1, 1], \
    interpolation = 'bicubic', resize_mode = 'squash' }\n";

/// Empty cache with its options, and a log of waits and progress reports.
struct Fixture {
    dir: TempDir,
    options: FetchOptions,
    /// Requested waits. None of them is slept.
    waits: Vec<Duration>,
    /// Byte counts of the progress reports.
    done: Vec<u64>,
}

impl Fixture {
    fn new(endpoint: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = FetchOptions::new(Cache::at(dir.path()));
        options.endpoint = endpoint.to_owned();
        options.retries = 2;
        options.backoff = Duration::from_secs(1);
        Self {
            dir,
            options,
            waits: Vec::new(),
            done: Vec::new(),
        }
    }

    fn fetch(&mut self, entry: &Entry) -> Result<Fetched, ZooError> {
        let done = &mut self.done;
        let mut progress = |p: Progress<'_>| done.push(p.done);
        fetch_with(entry, &self.options, &mut progress, &mut |wait| {
            self.waits.push(wait)
        })
    }

    #[track_caller]
    fn fetch_err(&mut self, entry: &Entry) -> ZooError {
        self.fetch(entry).expect_err("fetched")
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.dir.path().join("hub/models--o--n/blobs").join(name)
    }

    fn archive(&self, content: &[u8]) -> PathBuf {
        let folder = self.dir.path().join("clip-model");
        folder.join(sha256(content)).join("x.pt")
    }

    /// Returns `true` if the cache contains only lock, partial and corrupt files.
    fn is_clean(&self) -> bool {
        fn all(folder: &Path, names: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => all(&path, names),
                    path => names.push(path),
                }
            }
        }
        let mut names = Vec::new();
        all(self.dir.path(), &mut names);
        names.iter().all(|path| {
            matches!(
                path.extension().and_then(|e| e.to_str()),
                Some("lock" | "incomplete" | "corrupt")
            )
        })
    }
}

fn parse(source: &str) -> Entry {
    let registry = Registry::parse(&format!("{ENTRY}{source}"), Path::new("my.toml")).unwrap();
    registry.iter().next().unwrap().clone()
}

/// Returns a model with the file `m` on the Hub.
fn on_hub() -> Entry {
    on_hub_with("{ role = 'weights', names = ['m'] }")
}

fn on_hub_with(files: &str) -> Entry {
    parse(&format!(
        "[[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = 'main'\n\
         files = [{files}]\n"
    ))
}

/// Returns a model in the archive `x.pt` on `server`.
fn on_server(server: &Server, content: &[u8]) -> Entry {
    parse(&format!(
        "[[model.source]]\nlayout = 'openai-archive'\nurl = '{}/a/x.pt'\nsha256 = '{}'\n",
        server.url(),
        sha256(content)
    ))
}

/// Returns content without repetition, so that a misplaced chunk changes the hash, and longer than
/// all buffers.
fn content() -> Vec<u8> {
    (0..700_000_u32)
        .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes())
        .collect()
}

#[test]
fn hub_file_is_cached_in_python_layout() {
    let server = Server::start(|r| hub(r, &content()));
    let mut fixture = Fixture::new(&server.url());
    let fetched = fixture.fetch(&on_hub()).unwrap();

    let snapshot = fixture.options.cache.snapshot("o/n", COMMIT);
    assert_eq!(fetched.directory, Some(snapshot.clone()));
    assert_eq!(fetched.path(Role::Weights), Some(&*snapshot.join("m")));
    let file = &fetched.files[0];
    assert_eq!(fs::read(&file.path).unwrap(), content());
    assert_eq!((file.bytes, &file.sha256), (2_800_000, &sha256(&content())));
    assert_eq!(file.check, Check::Hub);
    assert_eq!(
        fs::read(fixture.blob(&sha256(&content()))).unwrap(),
        content()
    );
    let reference = fixture.dir.path().join("hub/models--o--n/refs/main");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
    assert_eq!(fixture.done.first(), Some(&0));
    assert_eq!(fixture.done.last(), Some(&2_800_000));
    assert!(fixture.done.is_sorted());

    let paths: Vec<_> = server
        .requests()
        .into_iter()
        .map(|r| (r.method, r.path))
        .collect();
    let path = "/o/n/resolve/main/m".to_owned();
    assert_eq!(
        paths,
        [("HEAD".to_owned(), path.clone()), ("GET".to_owned(), path)]
    );

    // The second call makes no request.
    assert_eq!(fixture.fetch(&on_hub()).unwrap(), fetched);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn hf_hub_finds_the_downloaded_file() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut fixture = Fixture::new(&server.url());
    let fetched = fixture.fetch(&on_hub()).unwrap();
    let hf_cache = hf_hub::Cache::new(fixture.options.cache.hub().to_owned());
    let hf_cache = hf_cache.repo(hf_hub::Repo::model("o/n".to_owned()));
    assert_eq!(hf_cache.get("m").as_deref(), fetched.path(Role::Weights));
}

#[cfg(unix)]
#[test]
fn snapshot_link_is_relative() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut fixture = Fixture::new(&server.url());
    let entry = on_hub_with("{ role = 'weights', names = ['sub/dir/m'] }");
    let fetched = fixture.fetch(&entry).unwrap();
    let target = fs::read_link(&fetched.files[0].path).unwrap();
    let expected = Path::new("../../../../blobs").join(sha256(b"content"));
    assert_eq!(target, expected);
    assert_eq!(fs::read(&fetched.files[0].path).unwrap(), b"content");
}

#[test]
fn archive_is_stored_under_its_hash() {
    let server = Server::start(|r| Response::body(r, b"content"));
    let mut fixture = Fixture::new("http://127.0.0.1:9");
    fixture.options.token = Token::new("hf_secret");
    let fetched = fixture.fetch(&on_server(&server, b"content")).unwrap();
    assert_eq!(
        fetched.path(Role::Weights),
        Some(&*fixture.archive(b"content"))
    );
    assert_eq!(fetched.layout, Layout::OpenaiArchive);
    assert_eq!(fetched.files[0].check, Check::Registry);
    // The token is sent to the Hub only.
    assert!(!server.requests()[0].headers.contains_key("authorization"));
}

#[test]
fn metadata_is_from_the_first_response() {
    let server = Server::start(|r| match &*r.path {
        // As on the Hub: a relative redirect with the headers of the file; the target has others.
        "/o/n/resolve/main/m" => hub(r, b"content")
            .with("Location", "elsewhere/1?key=secret")
            .redirect(),
        "/o/n/resolve/main/elsewhere/1?key=secret" => Response::new(307).with("Location", "/blob"),
        "/blob" => Response::body(r, b"content").with("ETag", "\"other\""),
        _ => Response::new(404),
    });
    let mut fixture = Fixture::new(&server.url());
    let fetched = fixture.fetch(&on_hub()).unwrap();
    assert_eq!(fetched.files[0].check, Check::Hub);
    assert!(fixture.blob(&sha256(b"content")).is_file());
}

#[test]
fn token_is_sent_to_the_hub_only() {
    let store = Server::start(|r| Response::body(r, b"content"));
    let location = format!("{}/blob", store.url());
    let server = Server::start(move |r| hub(r, b"content").with("Location", &location).redirect());
    let mut fixture = Fixture::new(&server.url());
    fixture.options.token = Token::new(" hf_secret\n");
    fixture.fetch(&on_hub()).unwrap();
    for request in server.requests() {
        assert_eq!(request.headers["authorization"], "Bearer hf_secret");
    }
    // A signed link is valid for one GET, so no HEAD is sent to it.
    let asked = store.requests();
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].headers.contains_key("authorization"));
    assert!(!format!("{:?}", fixture.options).contains("hf_secret"));
}

#[test]
fn endless_redirects_are_an_error() {
    let server = Server::start(|_| Response::new(302).with("Location", "/again"));
    let error = Fixture::new(&server.url()).fetch_err(&on_hub()).to_string();
    assert!(error.contains("redirects more than 8 times"), "{error}");
}

#[test]
fn broken_connection_is_resumed() {
    let server = Server::start(|r| match r.from() {
        None => hub(r, &content()).cut(1_000_000),
        Some(_) => hub(r, &content()),
    });
    let mut fixture = Fixture::new(&server.url());
    let fetched = fixture.fetch(&on_hub()).unwrap();
    assert_eq!(fetched.files[0].sha256, sha256(&content()));
    let ranges: Vec<_> = server
        .gets()
        .iter()
        .map(|r| r.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, [None, Some("bytes=1000000-".to_owned())]);
    assert_eq!(fixture.waits, [Duration::from_secs(1)]);
}

#[test]
fn partial_file_is_resumed_by_the_next_call() {
    let server = Server::start(|r| match r.nth {
        // Each response to the first call delivers ten bytes.
        0..3 if !r.is_head() => hub(r, &content()).cut(10),
        _ => hub(r, &content()),
    });
    let mut fixture = Fixture::new(&server.url());
    let error = fixture.fetch_err(&on_hub());
    assert!(
        matches!(error, ZooError::Connection { attempts: 3, .. }),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("broke off after 30 of 2800000 bytes"),
        "{error}"
    );
    assert_eq!(fixture.waits, [1, 2].map(Duration::from_secs));
    assert!(fixture.is_clean());
    let partial = fixture.blob(&format!("{}.incomplete", sha256(&content())));
    assert_eq!(fs::read(&partial).unwrap(), content()[..30]);

    fixture.done.clear();
    fixture.fetch(&on_hub()).unwrap();
    assert_eq!(server.gets()[3].from(), Some(30));
    assert_eq!(fixture.done[0], 30);
    assert!(!partial.exists());
}

#[test]
fn server_without_ranges_restarts_the_download() {
    let server = Server::start(|r| {
        let mut whole = r.clone();
        whole.headers.remove("range");
        let response = hub(&whole, &content());
        if r.nth == 0 {
            response.cut(1000)
        } else {
            response
        }
    });
    let mut fixture = Fixture::new(&server.url());
    let fetched = fixture.fetch(&on_hub()).unwrap();
    assert_eq!(server.gets()[1].from(), Some(1000));
    assert_eq!(fetched.files[0].sha256, sha256(&content()));
}

#[test]
fn wrong_range_is_not_appended() {
    let server = Server::start(|r| match (r.is_head(), r.nth) {
        (false, 0) => hub(r, b"content").cut(3),
        (false, 1) => Response {
            body: b"xxxxx".to_vec(),
            ..Response::new(206).with("Content-Range", "bytes 2-6/7")
        },
        _ => hub(r, b"content"),
    });
    let fetched = Fixture::new(&server.url()).fetch(&on_hub()).unwrap();
    assert_eq!(fetched.files[0].sha256, sha256(b"content"));
}

#[test]
fn partial_file_of_another_version_is_discarded() {
    let server = Server::start(|r| hub(r, b"content"));
    for partial in [&b"CON"[..], b"longer than the content", b"CONTENT"] {
        let mut fixture = Fixture::new(&server.url());
        let path = fixture.blob(&format!("{}.incomplete", sha256(b"content")));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, partial).unwrap();
        let fetched = fixture.fetch(&on_hub()).unwrap();
        assert_eq!(fetched.files[0].sha256, sha256(b"content"));
    }
}

#[test]
fn complete_partial_archive_is_not_downloaded_again() {
    let server = Server::start(|r| Response::body(r, b"content"));
    let mut fixture = Fixture::new("http://127.0.0.1:9");
    let path = fixture.archive(b"content").with_extension("pt.incomplete");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, b"content").unwrap();
    fixture.fetch(&on_server(&server, b"content")).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].from(), Some(7));
}

#[test]
fn wrong_announced_length_is_an_error() {
    for announced in ["3", "20"] {
        let server = Server::start(move |r| match r.is_head() {
            true => hub(r, b"content"),
            false => hub(r, b"content").with("Content-Length", announced),
        });
        let mut fixture = Fixture::new(&server.url());
        let error = fixture.fetch_err(&on_hub());
        let text = error.to_string();
        assert!(
            matches!(error, ZooError::Length { expected: 7, .. }),
            "{text}"
        );
        assert!(text.contains(announced), "{text}");
        assert!(fixture.is_clean());
    }
}

#[test]
fn archive_of_wrong_length_is_rejected() {
    // Shorter: the announced bytes arrive, but are not the whole file.
    let server = Server::start(|r| Response::body(r, b"content").with("Content-Length", "3"));
    let mut fixture = Fixture::new("http://127.0.0.1:9");
    let error = fixture.fetch_err(&on_server(&server, b"content"));
    assert!(matches!(error, ZooError::Checksum { .. }), "{error}");
    assert!(fixture.is_clean());
    // Longer: the announced bytes never arrive.
    let server = Server::start(|r| match r.from() {
        None => Response::body(r, b"content").with("Content-Length", "20"),
        Some(_) => Response {
            body: Vec::new(),
            ..Response::new(206).with("Content-Range", "bytes 7-19/20")
        },
    });
    let error = fixture
        .fetch_err(&on_server(&server, b"content"))
        .to_string();
    assert!(error.contains("broke off after 7 of 20 bytes"), "{error}");
    assert!(fixture.is_clean());
}

#[test]
fn download_with_wrong_hash_is_deleted() {
    let server = Server::start(|r| match r.is_head() {
        true => hub(r, b"content"),
        false => hub(r, b"CONTENT"),
    });
    let mut fixture = Fixture::new(&server.url());
    let text = fixture.fetch_err(&on_hub()).to_string();
    assert!(
        text.contains(&sha256(b"content")) && text.contains(&sha256(b"CONTENT")),
        "{text}"
    );
    assert!(text.contains("the download was deleted"), "{text}");
    assert!(
        !fixture
            .blob(&format!("{}.incomplete", sha256(b"content")))
            .exists()
    );
    assert!(fixture.is_clean());
    // One request: nothing was resumed, so a second download would not help.
    assert_eq!(server.gets().len(), 1);
}

#[test]
fn registry_hash_takes_precedence_over_the_hub() {
    let server = Server::start(|r| hub(r, b"CONTENT"));
    let hash = sha256(b"content");
    let entry = on_hub_with(&format!(
        "{{ role = 'weights', names = ['m'], sha256 = '{hash}' }}"
    ));
    let mut fixture = Fixture::new(&server.url());
    let text = fixture.fetch_err(&entry).to_string();
    assert!(
        text.contains(&hash) && text.contains(&sha256(b"CONTENT")),
        "{text}"
    );
    // The mismatch is detected before the download.
    assert_eq!(server.gets().len(), 0);
    assert!(fixture.is_clean());
}

#[test]
fn small_file_is_checked_by_length() {
    let etag = "a".repeat(40);
    let quoted = format!("W/\"{etag}\"");
    let server = Server::start(move |r| {
        Response::body(r, b"{}")
            .with("X-Repo-Commit", COMMIT)
            .with("ETag", &quoted)
    });
    let mut fixture = Fixture::new(&server.url());
    let fetched = fixture.fetch(&on_hub()).unwrap();
    assert_eq!(fetched.files[0].check, Check::LengthOnly);
    assert_eq!(fs::read(fixture.blob(&etag)).unwrap(), b"{}");
}

#[test]
fn corrupt_cached_file_is_renamed_and_downloaded_again() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut fixture = Fixture::new(&server.url());
    let path = fixture.fetch(&on_hub()).unwrap().files[0].path.clone();
    let blob = fixture.blob(&sha256(b"content"));
    fs::write(&blob, b"CONTENT").unwrap();

    fixture.options.offline = true;
    assert!(matches!(
        fixture.fetch_err(&on_hub()),
        ZooError::Checksum { .. }
    ));
    fixture.options.offline = false;
    fixture.fetch(&on_hub()).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"content");
    let aside = blob.with_extension("corrupt");
    assert_eq!(fs::read(aside).unwrap(), b"CONTENT");
}

#[test]
fn corrupt_openai_download_is_not_modified() {
    let server = Server::start(|r| Response::body(r, b"content"));
    let mut fixture = Fixture::new("http://127.0.0.1:9");
    let openai_file = fixture.dir.path().join("x.pt");
    fs::write(&openai_file, b"cont").unwrap();
    fixture.options.cache = fixture
        .options
        .cache
        .clone()
        .with_openai(fixture.dir.path());
    let fetched = fixture.fetch(&on_server(&server, b"content")).unwrap();
    assert_eq!(fetched.files[0].path, fixture.archive(b"content"));
    assert_eq!(fs::read(openai_file).unwrap(), b"cont");
}

#[test]
fn not_found_names_repository_and_revision() {
    let server = Server::start(|_| Response::new(404));
    let mut fixture = Fixture::new(&server.url());
    let entry = on_hub_with("{ role = 'weights', names = ['m.safetensors', 'm.bin'] }");
    let text = fixture.fetch_err(&entry).to_string();
    for part in [
        "m.safetensors or m.bin",
        "o/n",
        "revision main",
        "check the repository",
        "by hand",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(server.requests().len(), 2);
    assert_eq!(fixture.waits, []);
}

#[test]
fn first_existing_name_is_used_and_the_commit_is_pinned() {
    let server = Server::start(|r| match r.path.rsplit('/').next() {
        Some("m.bin") => hub(r, b"weights"),
        Some("c.json") => hub(r, b"config"),
        _ => Response::new(404),
    });
    let mut fixture = Fixture::new(&server.url());
    let entry = on_hub_with(
        "{ role = 'weights', names = ['m.safetensors', 'm.bin'] }, \
         { role = 'config', names = ['c.json'] }, \
         { role = 'tokenizer', repo = 'p/q', names = ['c.json'] }",
    );
    let fetched = fixture.fetch(&entry).unwrap();
    assert!(fetched.path(Role::Weights).unwrap().ends_with("m.bin"));
    // One of the files is in another repository.
    assert_eq!(fetched.directory, None);
    let paths: Vec<_> = server.gets().into_iter().map(|r| r.path).collect();
    let expected = [
        "/o/n/resolve/main/m.bin".to_owned(),
        format!("/o/n/resolve/{COMMIT}/c.json"),
        "/p/q/resolve/main/c.json".to_owned(),
    ];
    assert_eq!(paths, expected);
    assert_eq!(fixture.options.cache.lookup(&entry, None).unwrap(), fetched);
}

#[test]
fn ref_is_updated_after_all_files() {
    let server = Server::start(|r| match r.path.ends_with("/m") {
        true => hub(r, b"content"),
        false => Response::new(404),
    });
    let mut fixture = Fixture::new(&server.url());
    let reference = fixture.dir.path().join("hub/models--o--n/refs/main");
    fs::create_dir_all(reference.parent().unwrap()).unwrap();
    fs::write(&reference, "former").unwrap();
    let files = "{ role = 'weights', names = ['m'] }, { role = 'config', names = ['c'] }";
    let error = fixture.fetch_err(&on_hub_with(files));
    assert!(matches!(error, ZooError::NotFound { .. }), "{error}");
    assert_eq!(fs::read_to_string(&reference).unwrap(), "former");
    fixture.fetch(&on_hub()).unwrap();
    assert_eq!(fs::read_to_string(&reference).unwrap(), COMMIT);
    // The weights of the first call are reused.
    assert_eq!(server.gets().len(), 1);
}

#[test]
fn gated_repository_asks_for_a_token() {
    for status in [401, 403] {
        let server = Server::start(move |_| Response::new(status));
        let mut fixture = Fixture::new(&server.url());
        fixture.options.token = Token::new("hf_secret");
        let text = fixture.fetch_err(&on_hub()).to_string();
        assert!(text.contains("HF_TOKEN") && text.contains("o/n"), "{text}");
        assert!(
            text.contains(&status.to_string()) && !text.contains("hf_secret"),
            "{text}"
        );
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn retry_after_is_respected() {
    let server = Server::start(|r| match r.nth {
        0 => Response::new(429).with("Retry-After", "7"),
        _ => hub(r, b"content"),
    });
    let mut fixture = Fixture::new(&server.url());
    fixture.fetch(&on_hub()).unwrap();
    // Once for the headers, once for the content.
    assert_eq!(fixture.waits, [7, 7].map(Duration::from_secs));
}

#[test]
fn persistent_rate_limit_is_an_error() {
    let server = Server::start(|_| Response::new(429).with("Retry-After", "7"));
    let mut fixture = Fixture::new(&server.url());
    let error = fixture.fetch_err(&on_hub());
    let text = error.to_string();
    assert!(
        matches!(error, ZooError::RateLimited { attempts: 3, .. }),
        "{text}"
    );
    assert!(
        text.contains("asks to wait 7 s") && text.contains("HF_TOKEN"),
        "{text}"
    );
    assert_eq!(fixture.waits.len(), 2);
}

#[test]
fn long_retry_after_is_an_error() {
    let server = Server::start(|_| Response::new(429).with("Retry-After", "3600"));
    let mut fixture = Fixture::new(&server.url());
    let text = fixture.fetch_err(&on_hub()).to_string();
    assert!(
        text.contains("asks to wait 3600 s; gave up after 1 attempt"),
        "{text}"
    );
    assert_eq!(fixture.waits, []);
}

#[test]
fn server_error_is_retried() {
    let server = Server::start(|r| match r.nth {
        0 => Response::new(503),
        _ => hub(r, b"content"),
    });
    let mut fixture = Fixture::new(&server.url());
    fixture.fetch(&on_hub()).unwrap();
    let server = Server::start(|_| Response::new(500));
    let mut fixture = Fixture::new(&server.url());
    let error = fixture.fetch_err(&on_hub());
    assert!(
        matches!(
            error,
            ZooError::Status {
                status: 500,
                attempts: 3,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn refused_connection_is_an_error_after_retries() {
    // Nothing listens on the first port.
    let mut fixture = Fixture::new("http://me:secret@127.0.0.1:1");
    let error = fixture.fetch_err(&on_hub());
    let text = error.to_string();
    assert!(
        matches!(error, ZooError::Connection { attempts: 3, .. }),
        "{text}"
    );
    assert!(
        text.contains("refused") && !text.contains("secret"),
        "{text}"
    );
    assert!(fixture.is_clean());
}

#[test]
fn invalid_endpoint_is_not_shown() {
    let text = Fixture::new("ftp://me:secret@host")
        .fetch_err(&on_hub())
        .to_string();
    assert_eq!(text, "HF_ENDPOINT: is not an http or https URL");
}

#[test]
fn server_without_hub_headers_is_an_error() {
    let server = Server::start(|r| Response::body(r, b"<html>"));
    let text = Fixture::new(&server.url()).fetch_err(&on_hub()).to_string();
    assert!(text.contains("X-Repo-Commit is missing"), "{text}");
}

#[test]
fn unsafe_header_values_are_rejected() {
    for (header, value) in [
        ("X-Linked-Etag", "../../x"),
        ("X-Repo-Commit", ".."),
        ("X-Linked-Etag", "\"\""),
    ] {
        let server = Server::start(move |r| hub(r, b"content").with(header, value));
        let mut fixture = Fixture::new(&server.url());
        let error = fixture.fetch_err(&on_hub());
        assert!(matches!(error, ZooError::Answer { .. }), "{error}");
        assert_eq!(server.gets().len(), 0);
        assert!(fixture.is_clean());
    }
}

#[test]
fn offline_uses_the_cache_only() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut fixture = Fixture::new(&server.url());
    fixture.options.offline = true;
    let text = fixture.fetch_err(&on_hub()).to_string();
    assert!(
        text.contains("`a/b` is not in the cache") && text.contains("HF_HUB_OFFLINE"),
        "{text}"
    );
    assert!(server.requests().is_empty());
    fixture.options.offline = false;
    fixture.fetch(&on_hub()).unwrap();
    fixture.options.offline = true;
    fixture.fetch(&on_hub()).unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn file_appears_only_when_complete() {
    let server = Server::start(|r| Response::body(r, &content()));
    let entry = on_server(&server, &content());
    let fixture = Fixture::new("http://127.0.0.1:9");
    let path = fixture.archive(&content());
    let mut seen = Vec::new();
    let mut progress = |_: Progress<'_>| seen.push(path.exists());
    fetch_with(&entry, &fixture.options, &mut progress, &mut |_| ()).unwrap();
    assert!(seen.len() > 2 && seen.iter().all(|there| !there));
    assert!(path.exists());
}

#[test]
fn concurrent_fetches_download_once() {
    let server = Server::start(|r| hub(r, &content()));
    let fixture = Fixture::new(&server.url());
    let start = Arc::new(Barrier::new(2));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (options, start) = (fixture.options.clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                fetch_with(&on_hub(), &options, &mut |_| (), &mut |_| ()).unwrap()
            })
        })
        .collect();
    let fetched: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(fetched[0], fetched[1]);
    assert_eq!(fetched[0].files[0].sha256, sha256(&content()));
    assert_eq!(server.gets().len(), 1);
}

#[test]
fn next_source_is_tried_except_after_a_wrong_hash() {
    let server = Server::start(|r| match &*r.path {
        "/gone/x.pt" => Response::new(410),
        "/bad/x.pt" => Response::body(r, b"CONTENT"),
        "/o/n/resolve/main/m" => hub(r, b"content"),
        _ => Response::new(404),
    });
    let entry = |path: &str, file: &str| {
        parse(&format!(
            "[[model.source]]\nlayout = 'openai-archive'\nurl = '{}/{path}/x.pt'\nsha256 = '{}'\n\
             [[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = 'main'\n\
             files = [{{ role = 'weights', names = ['{file}'] }}]\n",
            server.url(),
            sha256(b"content")
        ))
    };
    let mut fixture = Fixture::new(&server.url());
    let fetched = fixture.fetch(&entry("gone", "m")).unwrap();
    assert_eq!(fetched.layout, Layout::OpenClip);
    let error = fixture.fetch_err(&entry("gone", "nothing"));
    let text = error.to_string();
    assert!(matches!(error, ZooError::Sources { .. }), "{text}");
    assert!(text.contains("410") && text.contains("nothing"), "{text}");
    let mut fixture = Fixture::new(&server.url());
    assert!(matches!(
        fixture.fetch_err(&entry("bad", "m")),
        ZooError::Checksum { .. }
    ));
}

#[test]
fn layout_option_restricts_sources() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut fixture = Fixture::new(&server.url());
    fixture.options.layout = Some(Layout::Transformers);
    let text = fixture.fetch_err(&on_hub()).to_string();
    assert_eq!(text, "`a/b` has no source in layout transformers");
    fixture.options.layout = Some(Layout::OpenClip);
    fixture.fetch(&on_hub()).unwrap();
}

#[test]
fn environment_of_huggingface_hub_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap().to_owned();
    fs::write(dir.path().join("token"), "hf_file\n").unwrap();
    let options = |vars: &[(&str, &str)]| {
        let var = |name: &str| match name {
            "HF_HOME" => Some(OsString::from(&home)),
            _ => vars
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(v)),
        };
        FetchOptions::from_vars(&var, None).unwrap()
    };
    let plain = options(&[]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert!(!plain.offline);
    assert_eq!(plain.token, Token::new("hf_file"));
    assert_eq!(plain.cache, Cache::at(dir.path()));
    let set = options(&[
        ("HF_ENDPOINT", "https://mirror.example/"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_TOKEN", "hf_var"),
        ("HF_HUB_CACHE", "/c"),
    ]);
    assert_eq!(set.endpoint, "https://mirror.example");
    assert!(set.offline);
    assert_eq!(set.token, Token::new("hf_var"));
    assert_eq!(set.cache.hub(), Path::new("/c"));
    assert_eq!(
        options(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")]).token,
        None
    );
    assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline);
}
