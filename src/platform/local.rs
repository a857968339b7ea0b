//! Connections between processes of one user on one computer: Unix sockets, which are files that only their owner can use. Elsewhere
//! there are none, which [`Listener::bind`] and [`connect`] say by [`io::ErrorKind::Unsupported`].

pub use system::*;

#[cfg(unix)]
mod system {
    use std::fs::{self, Permissions};
    use std::io;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
    use std::os::unix::net;
    use std::path::{Path, PathBuf};

    use socket2::{Domain, SockAddr, Socket, Type};
    use tokio::net::{UnixListener, UnixStream};

    /// The client's end; reads and writes block.
    pub type Stream = net::UnixStream;

    /// The server's end.
    pub type AsyncStream = UnixStream;

    /// Connections that wait to be taken.
    const BACKLOG: i32 = 16;

    /// Takes connections; dropping it removes the file.
    pub struct Listener {
        listener: UnixListener,
        path: PathBuf,
        /// Device and number of the file, to know it again.
        file: Option<(u64, u64)>,
    }

    impl Listener {
        /// Makes the socket's file, in the place of one that another process has left. The caller knows that no other server
        /// uses it. Needs the tokio runtime.
        pub fn bind(path: &Path) -> io::Result<Self> {
            let address = SockAddr::unix(path)?;
            if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                fs::remove_file(path)?;
            }
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&address)?;
            // Nobody can connect before `listen`, so nobody comes in while the mode is another.
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(Self {
                listener: UnixListener::from_std(net::UnixListener::from(socket))?,
                path: path.to_owned(),
                file: number(path),
            })
        }

        /// Waits for the next connection.
        pub async fn accept(&self) -> io::Result<AsyncStream> {
            Ok(self.listener.accept().await?.0)
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            // The next server may have taken the place already.
            if self.file.is_some() && number(&self.path) == self.file {
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn number(path: &Path) -> Option<(u64, u64)> {
        let found = fs::symlink_metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    }

    pub fn connect(path: &Path) -> io::Result<Stream> {
        net::UnixStream::connect(path)
    }
}

#[cfg(not(unix))]
mod system {
    use std::io;
    use std::net::TcpStream;
    use std::path::Path;

    /// Stands in for what there is not.
    pub type Stream = TcpStream;
    pub type AsyncStream = tokio::net::TcpStream;

    pub struct Listener {}

    impl Listener {
        pub fn bind(_: &Path) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub async fn accept(&self) -> io::Result<AsyncStream> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    pub fn connect(_: &Path) -> io::Result<Stream> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
