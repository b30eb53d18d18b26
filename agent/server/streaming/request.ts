import type { IncomingMessage } from "node:http";
import { offeredProtocols } from "../../lib/websocket/handshake.ts";
import { HttpError } from "../port.ts";

/** The streams that a client asks for. */
export interface WantedStreams {
  readonly stdin: boolean;
  readonly stdout: boolean;
  readonly stderr: boolean;
  readonly tty: boolean;
}

/**
 * Reads `input`, `output`, `error` and `tty`. A terminal has no stderr of its own, so that one is dropped.
 *
 * Throws HttpError 400 if no stream is asked for.
 */
export function wantedStreams(query: URLSearchParams): WantedStreams {
  const isSet = (name: string) => query.get(name) === "1";
  const tty = isSet("tty");
  const wanted = { stdin: isSet("input"), stdout: isSet("output"), stderr: isSet("error") && !tty, tty };
  if (!wanted.stdin && !wanted.stdout && !wanted.stderr) {
    throw new HttpError(400, "you must specify at least 1 of stdin, stdout, stderr");
  }
  return wanted;
}

const portMax = 65_535;

/** Ports of a legacy WebSocket port-forward: `port=80,443&port=8080`. Throws HttpError 400. */
export function wantedPorts(query: URLSearchParams): number[] {
  const values = query.getAll("port");
  if (values.length === 0) throw new HttpError(400, 'query parameter "port" is required');
  return values.flatMap((value) => {
    if (value === "") throw new HttpError(400, 'query parameter "port" cannot be empty');
    return value.split(",").map((text) => {
      const port = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
      if (!(port >= 1 && port <= portMax)) {
        throw new HttpError(400, `unable to parse "${value}" as a port: want 1 to ${portMax}`);
      }
      return port;
    });
  });
}

/** The WebSocket subprotocol for which this agent, not the runtime, is the server: it can close one stream of a session. */
export const remoteCommandProtocol = "v5.channel.k8s.io";

const tunnelPrefix = "SPDY/3.1+";

/** The SPDY protocols whose connection the client offers to carry in WebSocket messages. */
export function offeredTunnels(request: Pick<IncomingMessage, "headers">): string[] {
  return offeredProtocols(request)
    .filter((protocol) => protocol.startsWith(tunnelPrefix) && protocol.endsWith(".k8s.io"))
    .map((protocol) => protocol.slice(tunnelPrefix.length));
}

/** The WebSocket subprotocol that carries this SPDY protocol. */
export function tunnelOf(protocol: string): string {
  return tunnelPrefix + protocol;
}
