//! Tests of classes.
