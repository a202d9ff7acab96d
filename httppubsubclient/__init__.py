"""Subscribe and publish over plain HTTP.

Start with `httppubsubclient.client.HttpPubSubClient` and `httppubsubclient.config.HttpPubSubConfig`. This
package imports nothing by itself, so that the broadcaster can use `httppubsubclient.protocol` alone.
"""

__version__ = "0.1.0"
