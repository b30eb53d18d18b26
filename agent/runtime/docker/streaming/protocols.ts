import type { IncomingMessage } from "node:http";
import { isWebSocket, offeredProtocols } from "../../../lib/websocket/handshake.ts";

/** What a client gets in answer to its request to upgrade. */
export type Choice =
  | { kind: "spdy"; protocol: string; version: number }
  /** `protocol` is absent if the client offered none. */
  | { kind: "websocket"; protocol: string | undefined; version: number; isBase64: boolean }
  | { kind: "refused"; status: number; message: string; accepted?: readonly string[] };

const commandVersions: Readonly<Record<string, number>> = {
  "v5.channel.k8s.io": 5,
  "v4.channel.k8s.io": 4,
  "v3.channel.k8s.io": 3,
  "v2.channel.k8s.io": 2,
  "channel.k8s.io": 1,
};
// No v5 over SPDY: what it adds is a half close, which SPDY has anyhow.
const commandBySPDY = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
// v2 and v3 were never spoken over WebSocket.
const commandByWebSocket = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];
const base64ByWebSocket = ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"];

const portForwardBySPDY = ["portforward.k8s.io"];
const portForwardByWebSocket = ["v4.channel.k8s.io"];
const portForwardBase64 = ["v4.base64.channel.k8s.io"];

/** Chooses the protocol of a session: the client's first that is known here. */
export function chooseProtocol(kind: "exec" | "attach" | "portforward", request: IncomingMessage): Choice {
  if (isWebSocket(request)) return chooseWebSocket(kind, offeredProtocols(request));
  const { connection = "", upgrade = "" } = request.headers;
  if (!/\bupgrade\b/i.test(connection) || !/\bspdy\/3\.1\b/i.test(upgrade)) {
    return { kind: "refused", status: 400, message: "unable to upgrade: missing upgrade headers in request" };
  }
  const offered = (request.headersDistinct["x-stream-protocol-version"] ?? [])
    .flatMap((value) => value.split(","))
    .map((value) => value.trim())
    .filter((value) => value !== "");
  if (offered.length === 0) {
    return { kind: "refused", status: 400, message: "unable to upgrade: X-Stream-Protocol-Version is required" };
  }
  const accepted = kind === "portforward" ? portForwardBySPDY : commandBySPDY;
  const protocol = offered.find((name) => accepted.includes(name));
  if (protocol !== undefined) return { kind: "spdy", protocol, version: commandVersions[protocol] ?? 1 };
  const message = `unable to upgrade: unable to negotiate protocol: client supports ${offered.join(", ")}, server accepts ${accepted.join(", ")}`;
  return { kind: "refused", status: 403, message, accepted };
}

function chooseWebSocket(kind: "exec" | "attach" | "portforward", offered: readonly string[]): Choice {
  if (offered.length === 0) return { kind: "websocket", protocol: undefined, version: 1, isBase64: false };
  const plain = kind === "portforward" ? portForwardByWebSocket : commandByWebSocket;
  const base64 = kind === "portforward" ? portForwardBase64 : base64ByWebSocket;
  const protocol = offered.find((name) => plain.includes(name) || base64.includes(name));
  if (protocol === undefined) {
    const message = `unable to upgrade: none of the WebSocket protocols ${offered.join(", ")} is known`;
    return { kind: "refused", status: 403, message };
  }
  const isBase64 = base64.includes(protocol);
  return { kind: "websocket", protocol, version: commandVersions[protocol.replace("base64.", "")] ?? 1, isBase64 };
}
