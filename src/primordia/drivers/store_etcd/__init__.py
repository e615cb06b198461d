"""The etcd body of the store port, through etcd's own JSON gateway."""

from primordia.drivers.store_etcd.client import EtcdStore
from primordia.drivers.store_etcd.transport import Settings

__all__ = ["EtcdStore", "Settings"]
