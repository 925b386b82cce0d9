//! Mount namespaces: entering them, and statmount/listmount where the kernel has them.
