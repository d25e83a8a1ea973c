//! Random calls, beside a plain model.
