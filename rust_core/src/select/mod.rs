//! Exactly N queries under quotas.
