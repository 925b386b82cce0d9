//! CRIU plugin (its hooks come with the plugin issue; this file holds the C ABI).
