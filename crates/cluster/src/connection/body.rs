//! Bounded reading of answers.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use kube::client::Body;

use crate::error::Error;

/// The whole body, at most `max` bytes.
pub(crate) async fn read(operation: &str, body: Body, max: usize) -> Result<Bytes, Error> {
    match Limited::new(body, max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Error::TooLarge { operation: operation.into(), limit: max })
        }
        Err(error) => Err(Error::broken(operation, &*error)),
    }
}

/// A body that is a line for each event, as a watch has it.
pub(crate) struct Lines {
    body: Body,
    /// What came and is not yet given out.
    chunk: Bytes,
    /// The beginning of a line that goes on in the next chunk.
    begun: Vec<u8>,
    max: usize,
}

impl Lines {
    /// A line of more than `max` bytes is an error.
    pub(crate) fn new(body: Body, max: usize) -> Self {
        Self { body, chunk: Bytes::new(), begun: Vec::new(), max }
    }

    /// The next line that is not empty; nothing at the end. A line without an end is left out: the connection was cut in it. Nothing is
    /// lost when the future is dropped.
    pub(crate) async fn next(&mut self, operation: &str) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(line) = self.take_line(operation)? {
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(Error::broken(operation, &error)),
            }
        }
    }

    fn take_line(&mut self, operation: &str) -> Result<Option<Bytes>, Error> {
        while !self.chunk.is_empty() {
            let end = self.chunk.iter().position(|byte| *byte == b'\n');
            let part = self.chunk.split_to(end.map_or(self.chunk.len(), |end| end + 1));
            if self.begun.len() + part.len() > self.max {
                return Err(Error::TooLarge { operation: operation.into(), limit: self.max });
            }
            if end.is_none() {
                self.begun.extend_from_slice(&part);
                return Ok(None);
            }
            let line = if self.begun.is_empty() {
                part
            } else {
                self.begun.extend_from_slice(&part);
                Bytes::from(std::mem::take(&mut self.begun))
            };
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }
}
