//! Sockets: by which another process asks this one for something, and by which the kernel tells of devices.
//!
//! Nothing here allocates.

use crate::error::SysError;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Listens under a name of the abstract namespace, which ends with the socket.
///
/// # Errors
/// The refusal of socket, bind or listen; `EADDRINUSE` when somebody has the name.
pub(crate) fn listen(name: &[u8]) -> Result<OwnedFd, SysError> {
    let socket = open(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
    let (address, len) = abstract_address(name)?;
    // SAFETY: the address is valid for its length.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        return Err(SysError::last("bind"));
    }
    // SAFETY: takes numbers only.
    if unsafe { libc::listen(socket.as_raw_fd(), 4) } != 0 {
        return Err(SysError::last("listen"));
    }
    Ok(socket)
}

/// Connects to a name of the abstract namespace.
///
/// # Errors
/// The refusal of socket or connect; `ECONNREFUSED` when nobody listens.
pub(crate) fn connect(name: &[u8]) -> Result<OwnedFd, SysError> {
    let socket = open(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
    let (address, len) = abstract_address(name)?;
    // SAFETY: the address is valid for its length.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        return Err(SysError::last("connect"));
    }
    Ok(socket)
}

/// Opens a socket on which the kernel tells of devices that come and go.
///
/// # Errors
/// The refusal of socket or bind.
pub(crate) fn device_events() -> Result<OwnedFd, SysError> {
    /// What the kernel itself says.
    const KERNEL_GROUP: u32 = 1;
    let socket =
        open(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, libc::NETLINK_KOBJECT_UEVENT)?;
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = KERNEL_GROUP;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is valid for its length.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        return Err(SysError::last("bind"));
    }
    Ok(socket)
}

/// Receives an event of [`device_events`] into `buffer`; `None` when there is none. Events of others than the kernel are passed
/// over.
pub(crate) fn receive_event<'a>(socket: BorrowedFd<'_>, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    loop {
        let mut sender = MaybeUninit::<libc::sockaddr_nl>::zeroed();
        let mut len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: buffer and address are writable for their lengths.
        let nr = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
                sender.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let Ok(nr) = usize::try_from(nr) else {
            // What was too much for the socket's buffer is lost, and the next is there.
            if SysError::last("recvfrom").errno == libc::ENOBUFS {
                continue;
            }
            return None;
        };
        // SAFETY: zeroes are valid, and the kernel wrote the rest.
        if unsafe { sender.assume_init() }.nl_pid == 0 {
            return Some(&buffer[..nr.min(buffer.len())]);
        }
    }
}

/// Accepts a connection.
///
/// # Errors
/// The refusal of accept.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    let flags = libc::SOCK_CLOEXEC;
    // SAFETY: no address is asked for.
    let fd =
        unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if fd < 0 {
        return Err(SysError::last("accept4"));
    }
    // SAFETY: just returned; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the user who made a connection.
///
/// # Errors
/// The refusal of getsockopt.
pub(crate) fn peer_user(connection: BorrowedFd<'_>) -> Result<u32, SysError> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the structure is writable for its length.
    let rc = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if rc == 0 { Ok(peer.uid) } else { Err(SysError::last("getsockopt")) }
}

/// Waits until one of two descriptors can be read. Returns which.
///
/// # Errors
/// The refusal of poll.
pub(crate) fn wait_for_either(
    first: BorrowedFd<'_>,
    second: Option<BorrowedFd<'_>>,
) -> Result<[bool; 2], SysError> {
    let of = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // A negative number is passed over.
    let mut fds = [of(first.as_raw_fd()), of(second.map_or(-1, |fd| fd.as_raw_fd()))];
    // SAFETY: both structures outlive the call.
    while unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
        let error = SysError::last("poll");
        if error.errno != libc::EINTR {
            return Err(error);
        }
    }
    Ok(fds.map(|fd| fd.revents != 0))
}

/// Limits how long a read or a write of a connection may take.
///
/// # Errors
/// The refusal of setsockopt.
pub(crate) fn set_timeout(connection: BorrowedFd<'_>, limit: Duration) -> Result<(), SysError> {
    let limit = libc::timeval { tv_sec: limit.as_secs() as libc::time_t, tv_usec: 0 };
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let len = size_of_val(&limit) as libc::socklen_t;
        // SAFETY: the structure outlives the call.
        let rc = unsafe {
            libc::setsockopt(connection.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const limit).cast(), len)
        };
        if rc != 0 {
            return Err(SysError::last("setsockopt"));
        }
    }
    Ok(())
}

/// Reads from a connection; 0 at its end.
///
/// # Errors
/// The refusal of recv.
pub(crate) fn read(connection: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, SysError> {
    // SAFETY: the buffer is writable for its length.
    let nr = unsafe { libc::recv(connection.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(nr).map_err(|_| SysError::last("recv"))
}

/// Writes all of a text to a connection, without a SIGPIPE where nobody reads it.
///
/// # Errors
/// The refusal of send.
pub(crate) fn write(connection: BorrowedFd<'_>, text: &[u8]) -> Result<(), SysError> {
    let mut rest = text;
    while !rest.is_empty() {
        // SAFETY: the buffer is valid for its length.
        let nr = unsafe {
            libc::send(connection.as_raw_fd(), rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL)
        };
        rest = &rest[usize::try_from(nr).map_err(|_| SysError::last("send"))?..];
    }
    Ok(())
}

fn open(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> Result<OwnedFd, SysError> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(SysError::last("socket"));
    }
    // SAFETY: just returned; nobody else owns it.
    Ok(super::file::move_high(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Makes the address of an abstract name: a NUL and the name.
fn abstract_address(name: &[u8]) -> Result<(libc::sockaddr_un, libc::socklen_t), SysError> {
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let place = address.sun_path.get_mut(1..=name.len());
    let place = place.ok_or(SysError { call: "bind", errno: libc::ENAMETOOLONG })?;
    for (to, &from) in place.iter_mut().zip(name) {
        *to = from as libc::c_char;
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    Ok((address, len as libc::socklen_t))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_request_is_answered_and_the_user_is_known() {
        let name = format!("daxtier-socket-test.{}", std::process::id());
        assert_eq!(connect(name.as_bytes()).map_err(|e| e.errno).err(), Some(libc::ECONNREFUSED));
        let listener = listen(name.as_bytes()).unwrap();
        assert_eq!(listen(name.as_bytes()).map_err(|e| e.errno).err(), Some(libc::EADDRINUSE));
        let client = connect(name.as_bytes()).unwrap();
        assert_eq!(wait_for_either(listener.as_fd(), None), Ok([true, false]));
        let server = accept(listener.as_fd()).unwrap();
        assert_eq!(peer_user(server.as_fd()), Ok(super::super::file::effective_uid()));
        set_timeout(server.as_fd(), Duration::from_secs(1)).unwrap();
        write(client.as_fd(), b"ask").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read(server.as_fd(), &mut buffer), Ok(3));
        assert_eq!(&buffer[..3], b"ask");
        drop(client);
        assert_eq!(read(server.as_fd(), &mut buffer), Ok(0));
        assert!(write(server.as_fd(), b"answer").is_err(), "nobody reads, and the process lives");
        let long = [b'x'; 200];
        assert_eq!(listen(&long).map_err(|e| e.errno).err(), Some(libc::ENAMETOOLONG));
    }
}
