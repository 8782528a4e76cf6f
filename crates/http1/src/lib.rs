//! One HTTP/1.1 exchange, bounded in bytes and in time, for processes that ask one question and end.
//!
//! A general client would bring redirects, pools, compression and proxies, none of which is wanted here, and would blur which deadline
//! ended what. Parsing the head is `httparse`'s business; TLS is laid around a [`Connection`] by whoever needs it.

mod connection;
mod error;
mod exchange;
pub mod unix;

pub use connection::{Connection, Deadline, Socket};
pub use error::Error;
pub use exchange::{Response, clean, exchange, hide, request};
