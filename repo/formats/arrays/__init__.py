"""Tables, frames and streams of arrays, as points."""
