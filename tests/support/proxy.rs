//! A network that breaks on command, between clients and the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::server::claim_ports;
use super::{Ports, Server};

/// The ports of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Command,
    Data,
    /// Of four-socket clients also what they publish.
    Ttl,
    FourSocketTtl,
}

pub const CHANNELS: [Channel; 3] = [Channel::Command, Channel::Data, Channel::Ttl];

const OPEN: u8 = 0;
const REFUSE: u8 = 1;
const BLACK_HOLE: u8 = 2;

/// One port's line: what it does to connections, and the connections it carries.
#[derive(Default)]
struct Line {
    mode: AtomicU8,
    stalled: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

#[derive(Default)]
struct Weather {
    /// One way, in ms.
    latency: AtomicU64,
    /// Bytes per second and direction of each connection; 0: unlimited.
    bandwidth: AtomicU64,
    closed: AtomicBool,
}

pub struct Proxy {
    pub ports: Ports,
    lines: [Arc<Line>; 4],
    weather: Arc<Weather>,
}

impl Proxy {
    pub fn to(server: &Server) -> Self {
        Self::to_ports(server.ports)
    }

    pub fn to_ports(target: Ports) -> Self {
        let (ports, listeners) = claim_ports();
        let weather = Arc::new(Weather::default());
        let lines: [Arc<Line>; 4] = Default::default();
        for ((listener, line), port) in listeners.into_iter().zip(&lines).zip(target.command..) {
            let (line, weather) = (Arc::clone(line), Arc::clone(&weather));
            thread::spawn(move || accept(&listener, port, &line, &weather));
        }
        Self {
            ports,
            lines,
            weather,
        }
    }

    fn line(&self, channel: Channel) -> &Line {
        &self.lines[channel as usize]
    }

    /// Breaks the connections that exist; new ones are let through.
    pub fn cut(&self, channels: &[Channel]) {
        for channel in channels {
            for stream in self.line(*channel).streams.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Accepts and closes at once whatever comes, and breaks what is there.
    pub fn refuse(&self, channels: &[Channel]) {
        self.set_mode(channels, REFUSE);
    }

    /// Accepts and never answers, as a firewall does that drops packets.
    pub fn swallow(&self, channels: &[Channel]) {
        self.set_mode(channels, BLACK_HOLE);
    }

    fn set_mode(&self, channels: &[Channel], mode: u8) {
        for channel in channels {
            self.line(*channel).mode.store(mode, Relaxed);
        }
        self.cut(channels);
    }

    /// Lets connections through again; clients come back by themselves.
    pub fn restore(&self, channels: &[Channel]) {
        for channel in channels {
            self.line(*channel).mode.store(OPEN, Relaxed);
        }
    }

    /// No byte passes while `stalled`, though connections stay.
    pub fn stall(&self, channels: &[Channel], stalled: bool) {
        for channel in channels {
            self.line(*channel).stalled.store(stalled, Relaxed);
        }
    }

    /// Delay of each direction; a round trip costs twice that.
    pub fn latency(&self, one_way: Duration) {
        self.weather
            .latency
            .store(one_way.as_millis() as u64, Relaxed);
    }

    /// Bytes per second, each direction of each connection.
    pub fn bandwidth(&self, bytes_per_second: u64) {
        self.weather.bandwidth.store(bytes_per_second, Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.weather.closed.store(true, Relaxed);
        self.cut(&CHANNELS);
        self.cut(&[Channel::FourSocketTtl]);
    }
}

fn accept(listener: &TcpListener, target: u16, line: &Arc<Line>, weather: &Arc<Weather>) {
    listener
        .set_nonblocking(true)
        .expect("listener can be polled");
    let mut silent = Vec::new();
    while !weather.closed.load(Relaxed) {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if line.mode.load(Relaxed) == OPEN {
                    silent.clear();
                }
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(_) => continue,
        };
        match line.mode.load(Relaxed) {
            REFUSE => drop(client),
            BLACK_HOLE => silent.push(client),
            _ => {
                // A server that is gone: the client sees its connection close and tries again.
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                carry(client, server, line, weather);
            }
        }
    }
}

fn carry(client: TcpStream, server: TcpStream, line: &Arc<Line>, weather: &Arc<Weather>) {
    for stream in [&client, &server] {
        stream.set_nonblocking(false).expect("stream can block");
        stream.set_nodelay(true).expect("stream takes options");
    }
    let clone = |stream: &TcpStream| stream.try_clone().expect("stream can be cloned");
    line.streams
        .lock()
        .unwrap()
        .extend([clone(&client), clone(&server)]);
    pump(clone(&client), clone(&server), line, weather);
    pump(server, client, line, weather);
}

/// One direction: a reader that stamps what comes, a writer that lets it go when its time is up.
fn pump(mut from: TcpStream, mut to: TcpStream, line: &Arc<Line>, weather: &Arc<Weather>) {
    // Bounded, so that a stall reaches back to the sender as it does on a real line.
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(32);
    thread::spawn(move || {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if sender
                .send((Instant::now(), buffer[..count].to_vec()))
                .is_err()
            {
                break;
            }
        }
    });
    let (line, weather) = (Arc::clone(line), Arc::clone(weather));
    thread::spawn(move || {
        for (came, bytes) in receiver {
            let due = came + Duration::from_millis(weather.latency.load(Relaxed));
            thread::sleep(due.saturating_duration_since(Instant::now()));
            while line.stalled.load(Relaxed) && !weather.closed.load(Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
            let bandwidth = weather.bandwidth.load(Relaxed);
            if let Some(time) = (bytes.len() as u64 * 1_000_000).checked_div(bandwidth) {
                thread::sleep(Duration::from_micros(time));
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
