// Limits of the kubelet API's listeners. Durations are milliseconds, sizes bytes.

/** Times that a connection may take. Node measures them, not our clock. */
export interface ConnectionTimes {
  /** Idle connections are closed after this time: the reference's value. */
  readonly keepAliveMs: number;
  /** A request, with its body, must be read within this time: the reference's value. */
  readonly requestReadMs: number;
  /**
   * The header must be complete within this time. The reference waits 4 h, which is what slow-loris clients live on.
   */
  readonly headersReadMs: number;
  /** A TLS handshake must be done within this time. The reference waits 4 h here, too. */
  readonly handshakeMs: number;
  /** How often Node looks for connections that broke the two limits on reading. */
  readonly checkMs: number;
}

export const connectionTimes: ConnectionTimes = {
  keepAliveMs: 90_000,
  requestReadMs: 4 * 3_600_000,
  headersReadMs: 32_000,
  handshakeMs: 10_000,
  checkMs: 2_000,
};

/** An answer must be written within this time, however slowly: the reference's value. It also ends a `logs -f`. */
export const responseWriteMs = 4 * 3_600_000;

/** Request line and headers together: the reference's 1 MiB and the slop that Go's server adds. */
export const headerBytesMax = 1_048_576 + 4_096;

/** A path, as it is sent. Three names of 253 characters need less, and so does the longest path of a file. */
export const pathBytesMax = 16_384;

/**
 * Headers of all untrusted connections of one listener together, incomplete ones and those of requests that wait for their
 * answer: many headers of 1 MiB would fill memory.
 */
export const untrustedHeaderBytesMax = 4 * 1_048_576;

/** The same for connections on which somebody was allowed something. */
export const trustedHeaderBytesMax = 32 * 1_048_576;

/**
 * From here on, unfinished headers wait for each other: one chunk of one of them is read in a turn of the event loop.
 * Node's parser copies what it has with every piece that comes, which takes a millisecond for a large header.
 */
export const headerBytesEasy = 65_536;

/**
 * Connections of one listener on which nobody was allowed anything. Each costs some 60 KB with TLS. At the bound the
 * oldest one makes room, so a flood cannot lock out the API server: it authenticates within milliseconds.
 */
export const untrustedConnectionsMax = 512;

/** A flood is worth a line in the log this often. */
export const floodWarningMs = 60_000;

/** Requests that a client may send ahead of their answers. Nobody is known to do it; each costs memory. */
export const pipelinedRequestsMax = 64;

/** Parameters of a query: Go's limit. Node.js needs seconds for half a million of them. */
export const queryParametersMax = 10_000;

/** When the agent stops: how long handlers get to notice, before connections are cut. */
export const stopGraceMs = 1_500;

/** How long a connection that leaves HTTP gets to take its last bytes. */
export const flushMs = 10_000;

/** The listener of /healthz is tried again after this time: the reference's value. */
export const healthzRetryMs = 5_000;

/**
 * How often Node looks for slow connections of a healthCheckNodePort. There is a listener for each such Service, and the clients
 * share one bound: later is soon enough.
 */
export const healthCheckPortCheckMs = 10_000;

/** The proxy's listeners of health and metrics are tried again after this time: the reference's value. */
export const proxyBindRetryMs = 5_000;

/** Pause between keep-alive probes of TCP, which find dead clients: Go's default. */
export const tcpKeepAliveMs = 15_000;

/** Bodies that are read as a whole: a number, a short form. */
export const bodyBytesMax = 65_536;

/**
 * A body up to this long is read and thrown away if its handler did not want it, so that the connection can go on:
 * Go's.
 */
export const drainedBytesMax = 262_144;
