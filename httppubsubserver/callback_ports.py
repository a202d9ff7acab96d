"""Which ports callbacks may have: numbers, ranges, and names for the usual choices.

| name    | what it stands for                                                                              |
|---------|-------------------------------------------------------------------------------------------------|
| `web`   | 80, 443, 8080 and 8443                                                                          |
| `usual` | 80, 443, and all from 1024 on but those at which other services commonly listen, `OTHER_SERVICES` |
| `all`   | 1 to 65535                                                                                      |

A request of HTTP that a mail server, a cache or a database takes for a conversation is the oldest use of somebody
else's client. The table ends where the ports begin that systems give out by themselves (32768 with Linux): any program
may have one of those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from httppubsubclient.protocol.errors import ConfigurationError

__all__ = ["OTHER_SERVICES", "CallbackPorts"]

_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)

# From the IANA service names registry and the services' own documentation; those that the Fetch standard blocks
# (section 2.9 "port blocking") are all among them.
OTHER_SERVICES: Final[dict[str, tuple[int | range, ...]]] = {
    # databases
    "SQL Server": (1433, 1434),
    "Oracle": (range(1521, 1523), 1526, 1527, range(2483, 2485)),
    "Firebird": (3050,),
    "MySQL": (3306,),
    "PostgreSQL, PgBouncer, Redshift": (5432, 5433, 5439, 6432),
    "CouchDB": (5984, 6984),
    "Neo4j": (7473, 7474, 7687),
    "InfluxDB": (8086,),
    "ClickHouse": (8123,),
    "ArangoDB": (8529,),
    "Solr": (8983,),
    "Cassandra": (7199, 9042, 9160),
    "Elasticsearch": (9200, 9300),
    "Sphinx": (9306, 9312),
    "MongoDB": (range(27017, 27020), 28017),
    "RethinkDB": (28015, 29015),
    # caches, queues, coordination
    "IBM MQ": (1414,),
    "MQTT": (1883, 8883),
    "ZooKeeper": (2181, 2888, 3888),
    "etcd": (2379, 2380),
    "NATS": (4222, 6222, 8222),
    "Gearman": (4730,),
    "AMQP, RabbitMQ": (4369, 5671, 5672, 15671, 15672, 25672),
    "Redis": (6379, 6380, 16379, 26379),
    "Vault, Consul": (8200, 8201, range(8300, 8303), 8500, 8501, 8600),
    "Kafka": (range(9092, 9095),),
    "memcached": (11211, 11214, 11215),
    "beanstalkd": (11300,),
    # what runs programs on request
    "Java RMI, AJP, the end of Tomcat": (1099, 8005, 8009),
    "Docker": (range(2375, 2378),),
    "Salt": (4505, 4506),
    "Kubernetes": (6443, 10250, 10255, 10257, 10259),
    "Spark": (7077,),
    # remote access, tunnels, proxies
    "SOCKS": (1080,),
    "OpenVPN, PPTP": (1194, 1723),
    "SSH": (2222,),
    "Squid": (3128,),
    "RDP": (3389,),
    "VNC": (range(5900, 5910),),
    "WinRM": (5985, 5986),
    "X11": (range(6000, 6064),),
    # mail, talk, directories
    "SMTP and ManageSieve": (2525, 4190),
    "LDAP": (3268, 3269),
    "H.323": (1719, 1720),
    "SIP": (5060, 5061),
    "XMPP": (5222, 5269, 5280),
    "IRC": (range(6660, 6670), 6679, 6697),
    # files, devices, the log
    "NFS": (2049, 4045),
    "iSCSI": (3260,),
    "AirPort, Subversion, Git": (3659, 3690, 9418),
    "SANE": (6566,),
    "printers": (9100,),
    "Carbon": (2003, 2004),
    "Logstash, Fluentd, Graylog": (5044, 12201, 24224),
    "Amanda": (10080,),
}
"""By service; numbers and ranges from 1024 to 32767."""


class CallbackPorts:
    """A set of ports, from the entries of the setting. Raises `ConfigurationError` that names the one at fault."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._allowed = bytearray(65536)
        for at, entry in enumerate(entries):
            for port in _ports(f"callback_ports[{at}]", entry):
                self._allowed[port] = 1

    def __contains__(self, port: int) -> bool:
        return 0 < port < 65536 and self._allowed[port] == 1


def _ports(place: str, entry: str) -> Iterable[int]:
    if entry == "web":
        return (80, 443, 8080, 8443)
    if entry == "usual":
        others = {port for ports in OTHER_SERVICES.values() for each in ports for port in _numbers(each)}
        return (80, 443, *(port for port in range(1024, 65536) if port not in others))
    match = _RANGE.fullmatch("1-65535" if entry == "all" else entry)
    first = 0 if match is None else int(match[1])
    last = first if match is None or match[2] is None else int(match[2])
    if not 1 <= first <= last <= 65535:
        raise ConfigurationError(
            f"{place} is {entry[:40]!a}: write a port from 1 to 65535, a range like 8000-8999, web, usual or all"
        )
    return range(first, last + 1)


def _numbers(ports: int | range) -> Iterable[int]:
    return (ports,) if isinstance(ports, int) else ports
