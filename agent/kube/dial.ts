import { connect as connectTcp, isIP, type Socket } from "node:net";
import { connect as connectTls, type TLSSocket } from "node:tls";
import type { Clock } from "../lib/clock.ts";
import { AgentError } from "../lib/errors.ts";
import type { TlsOptions } from "./access.ts";
import { type TransportLimits, transportError } from "./connection.ts";

export interface DialOptions {
  url: URL;
  tls: TlsOptions;
  /** ALPN, best first. */
  protocols: string[];
  clock: Clock;
  limits: Pick<TransportLimits, "connectMs" | "handshakeMs">;
  signal: AbortSignal;
}

// The kubelet's TCP keep-alive interval.
const tcpKeepAliveMs = 30_000;

/** Connects and, for https, shakes hands. Rejects with TransportError that says which step failed. */
export async function dial(options: DialOptions): Promise<Socket | TLSSocket> {
  const { url, limits } = options;
  const isTls = url.protocol === "https:";
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port === "" ? (isTls ? 443 : 80) : Number(url.port);
  const tcp = connectTcp({ host, port, noDelay: true, keepAlive: true, keepAliveInitialDelay: tcpKeepAliveMs });
  await established(tcp, "connect", limits.connectMs, options);
  if (!isTls) return tcp;
  const { ca, cert, key, serverName, insecureSkipVerify } = options.tls;
  const name = serverName ?? host;
  const secure = connectTls({
    socket: tcp,
    host: name,
    servername: isIP(name) === 0 ? name : "", // an address is no valid SNI; it is still what gets verified
    ALPNProtocols: options.protocols,
    rejectUnauthorized: !insecureSkipVerify,
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  });
  await established(secure, "secureConnect", limits.handshakeMs, options);
  return secure;
}

async function established(
  socket: Socket,
  event: "connect" | "secureConnect",
  timeoutMs: number,
  { url, clock, signal }: DialOptions,
): Promise<void> {
  const what = event === "connect" ? "connect" : "TLS handshake";
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onError = (err: Error) => reject(transportError(url, what, err, "connect"));
  const onClose = () => reject(transportError(url, what, "the server closed the connection", "connect"));
  const onAbort = () => reject(new AgentError("Canceled", "the API client is closed"));
  const timer = clock.after(timeoutMs, () =>
    reject(transportError(url, what, `no answer within ${timeoutMs} ms`, "connect")),
  );
  socket.once(event, resolve);
  socket.once("error", onError);
  socket.once("close", onClose);
  signal.addEventListener("abort", onAbort, { once: true });
  if (signal.aborted) onAbort();
  try {
    await promise;
  } catch (err) {
    socket.on("error", () => {}); // a late error of a socket that nobody waits for any more
    socket.destroy();
    throw err;
  } finally {
    timer.cancel();
    socket.off(event, resolve);
    socket.off("error", onError);
    socket.off("close", onClose);
    signal.removeEventListener("abort", onAbort);
  }
}
