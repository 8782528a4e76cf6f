//! What the cluster says of this node: watches into an index.
