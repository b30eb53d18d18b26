/** Limits of the kubelet API's listeners. Durations are milliseconds, sizes bytes. */

/** Idle connections are closed after this time: the reference's value. */
export const keepAliveMs = 90_000;

/** A request, with its body, must be read within this time: the reference's value. */
export const requestReadMs = 4 * 3_600_000;

/** An answer must be written within this time, however slowly: the reference's value. It also ends a `logs -f`. */
export const responseWriteMs = 4 * 3_600_000;

/** The header must be complete within this time. The reference waits 4 h, which is what slow-loris clients live on. */
export const headersReadMs = 32_000;

/** A TLS handshake must be done within this time. The reference waits 4 h here, too. */
export const handshakeMs = 10_000;

/** How often Node looks for connections that broke the two limits on reading. */
export const readLimitsCheckMs = 2_000;

/** Request line and headers together: the reference's 1 MiB and the slop that Go's server adds. */
export const headerBytesMax = 1_048_576 + 4_096;

/** Incomplete headers of all untrusted connections of one listener together: many headers of 1 MiB would fill memory. */
export const untrustedHeaderBytesMax = 16 * 1_048_576;

/**
 * Connections of one listener that nobody has authenticated on. Each costs some 60 KB with TLS. At the bound the oldest one
 * makes room, so a flood cannot lock out the API server: it authenticates within milliseconds.
 */
export const untrustedConnectionsMax = 512;

/** Requests that a client may send ahead of their answers. Nobody is known to do it; each costs memory. */
export const pipelinedRequestsMax = 64;

/** When the agent stops: how long handlers get to notice, before connections are cut. */
export const stopGraceMs = 1_500;

/** How long a connection that leaves HTTP gets to take its last bytes. */
export const flushMs = 10_000;

/** The listener of /healthz is tried again after this time: the reference's value. */
export const healthzRetryMs = 5_000;

/** Pause between keep-alive probes of TCP, which find dead clients: Go's default. */
export const tcpKeepAliveMs = 15_000;

/** Bodies that are read as a whole: a number, a short form. */
export const bodyBytesMax = 65_536;
