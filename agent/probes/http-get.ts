import { type ClientRequest, type IncomingMessage, request } from "node:http";
import { connect, isIP, type Socket } from "node:net";
import { connect as connectTLS, createSecureContext, DEFAULT_CIPHERS, type SecureContext } from "node:tls";
import type { Container, HTTPGetAction } from "../kube/types.ts";
import { errnoText } from "../lib/errno-text.ts";
import { handlerHost, handlerPort, hostPort } from "./address.ts";
import { type Deadline, withDeadline } from "./deadline.ts";
import { lookup } from "./lookup.ts";

/** Requests made, the first and those to where redirects led, before we give up (Go's http.Client). */
export const requestsMax = 10;
/** Bytes of an answer's body that are read (kubelet: 10 KiB). */
export const bodyBytesMax = 10 * 1024;
/** Bytes of an answer's header that are read. Node.js' own limit of 16 KiB is less than servers with many cookies send. */
export const headerBytesMax = 256 * 1024;

/** What an HTTP handler of a pod asks for. */
export interface HTTPTarget {
  url: URL;
  /** In the order given; names are kept as they are written. */
  headers: readonly (readonly [string, string])[];
}

export interface HTTPAnswer {
  status: number;
  /** Up to {@link bodyBytesMax}. */
  body: string;
  /** Why the body did not come to its end, for people. */
  broken?: string;
}

/**
 * Where `action` leads.
 *
 * @param podIP used where the action names no host
 * @param userAgent sent unless the action sets its own; this and `Accept` are left out where the action sets them to ""
 * @throws Error if the port cannot be made out or the URL is none
 */
export function httpTarget(action: HTTPGetAction, container: Container, podIP: string, userAgent: string): HTTPTarget {
  const port = handlerPort(action.port, container);
  const scheme = (action.scheme ?? "HTTP").toLowerCase();
  const path = action.path ?? "/";
  const authorityText = hostPort(handlerHost(action.host, podIP), port);
  const url = new URL(`${scheme}://${authorityText}${path.startsWith("/") ? "" : "/"}${path}`);
  url.hash = "";
  const given = (action.httpHeaders ?? []).map(({ name, value }) => [name, value] as const);
  const withDefault = (name: string, value: string) =>
    given.some(([other]) => other.toLowerCase() === name.toLowerCase()) ? [] : [[name, value] as const];
  const isRemoved = (name: string, value: string) => value === "" && /^(user-agent|accept)$/i.test(name);
  const headers = [
    ...given.filter(([name, value]) => !isRemoved(name, value)),
    ...withDefault("User-Agent", userAgent),
    ...withDefault("Accept", "*/*"),
  ];
  return { url, headers };
}

/**
 * GETs a target, following redirects on the same host; the answer that leads to another is the last one. The certificate of
 * an HTTPS server is not verified, as handlers are aimed at pods, which rarely have one that could be. No connection is kept.
 *
 * Rejects with an Error whose message is for people: what failed, and where; its cause is the network's own. The deadline is
 * such a failure, too, until the answer's header has come.
 */
export async function httpGet(target: HTTPTarget, deadline: Deadline): Promise<HTTPAnswer> {
  return await withDeadline(deadline, async (signal) => await follow(target, signal));
}

async function follow({ url, headers }: HTTPTarget, signal: AbortSignal): Promise<HTTPAnswer> {
  let at = url;
  let own = headers;
  for (let requests = 1; ; requests += 1) {
    const { next, ...answer } = await get(at, own, url.hostname, signal);
    if (next === undefined) return answer;
    if (requests === requestsMax) throw new Error(`Get "${textOf(next.url)}": stopped after ${requestsMax} redirects`);
    // Somebody else's full URL says whom it asks for.
    if (next.isAbsolute) own = own.filter(([name]) => name.toLowerCase() !== "host");
    at = next.url;
  }
}

const awaitingText = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
const readingText = "context deadline exceeded (Client.Timeout or context cancellation while reading body)";

// The URL class leaves out a scheme's own port; servers and people are told it.
function authority({ host, port, protocol }: URL): string {
  return port === "" ? `${host}:${protocol === "https:" ? 443 : 80}` : host;
}

function textOf(url: URL): string {
  return `${url.protocol}//${authority(url)}${url.pathname}${url.search}`;
}

interface Redirect {
  url: URL;
  isAbsolute: boolean;
}

/** @throws Error if it leads to what is no URL */
function redirectOf({ statusCode = 0, headers }: IncomingMessage, from: URL, hostname: string): Redirect | undefined {
  const { location = "" } = headers;
  if (![301, 302, 303, 307, 308].includes(statusCode) || location === "") return undefined;
  const url = URL.parse(location, from.href);
  if (url === null) throw new Error(`failed to parse Location header ${JSON.stringify(location)}`);
  return url.hostname === hostname ? { url, isAbsolute: URL.canParse(location) } : undefined;
}

async function get(
  url: URL,
  headers: HTTPTarget["headers"],
  hostname: string,
  signal: AbortSignal,
): Promise<HTTPAnswer & { next?: Redirect }> {
  let sent: ClientRequest | undefined;
  const onAbort = () => sent?.destroy(new Error(awaitingText));
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    if (signal.aborted) throw new Error(awaitingText);
    sent = begin(url, headers);
    const response = await headerOf(sent);
    const status = response.statusCode ?? 0;
    if (status === 101) return { status, body: "" };
    const next = redirectOf(response, url, hostname);
    if (next !== undefined) return { status, body: "", next };
    return { status, ...(await readBody(response, signal)) };
  } catch (err) {
    throw new Error(`Get "${textOf(url)}": ${signal.aborted ? awaitingText : failureText(err)}`, { cause: err });
  } finally {
    signal.removeEventListener("abort", onAbort);
    sent?.destroy();
  }
}

/** True if a request to an HTTPS server failed because its first bytes are none of TLS: a version belongs there. */
export function isPlainAnswer(err: unknown): boolean {
  return tlsReason(err) === "wrong version number";
}

// OpenSSL's messages carry addresses and lines of its source; its reason is what people can use.
function tlsReason(err: unknown): string | undefined {
  return err instanceof Error ? /:SSL routines:[^:]*:([^:]*):/.exec(err.message)?.[1] : undefined;
}

function failureText(err: unknown): string {
  const reason = tlsReason(err);
  if (isPlainAnswer(err)) return "http: server gave HTTP response to HTTPS client";
  return reason === undefined ? errnoText(err) : `tls: ${reason}`;
}

/** @throws Error for a scheme that is not HTTP's and for a header that HTTP cannot carry */
function begin(url: URL, headers: HTTPTarget["headers"]): ClientRequest {
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    throw new Error(`unsupported protocol scheme "${url.protocol.slice(0, -1)}"`);
  }
  const sent = request({
    createConnection: () => dial(url),
    path: `${url.pathname}${url.search}`,
    headers: rawHeaders(url, headers),
    setHost: false,
    maxHeaderSize: headerBytesMax,
    // Accepts what other clients do, such as lines without CR from a server made of shell and netcat.
    insecureHTTPParser: true,
  });
  sent.end();
  return sent;
}

function dial(url: URL): Socket {
  // The URL class keeps the brackets around an IPv6 address.
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port === "" ? (url.protocol === "https:" ? 443 : 80) : Number(url.port);
  if (url.protocol === "http:") return connect({ host, port, lookup });
  secureContext ??= createSecureContext({ ciphers: `${DEFAULT_CIPHERS}:@SECLEVEL=0` });
  const servername = isIP(host) === 0 ? host : "";
  return connectTLS({ host, port, lookup, servername, secureContext, rejectUnauthorized: false });
}

// Made when first used, and once: it costs more than a request. Short keys are fine where nothing is verified.
let secureContext: SecureContext | undefined;

// Those that say how the message itself is sent are not the action's business.
const ownHeaders = ["host", "content-length", "transfer-encoding", "trailer"];

// Names and values in turn: as a list, they go out as they are written, and repeated ones stay apart.
function rawHeaders(url: URL, headers: HTTPTarget["headers"]): string[] {
  const host = headers.find(([name]) => name.toLowerCase() === "host")?.[1] ?? "";
  const others = headers.filter(([name]) => !ownHeaders.includes(name.toLowerCase()));
  const list = [["Host", host === "" ? authority(url) : host] as const, ["Connection", "close"] as const, ...others];
  // Node.js sends a character as a byte: what is not ASCII goes out as UTF-8.
  return list.flatMap(([name, value]) => [name, Buffer.from(value, "utf8").toString("latin1")]);
}

/** Resolves when the answer's header has come; also with that of a protocol switch that nobody asked for. */
async function headerOf(sent: ClientRequest): Promise<IncomingMessage> {
  return await new Promise<IncomingMessage>((resolve, reject) => {
    sent.on("error", reject);
    sent.on("response", resolve);
    sent.on("upgrade", (response, socket) => {
      socket.destroy();
      resolve(response);
    });
  });
}

async function readBody(response: IncomingMessage, signal: AbortSignal): Promise<{ body: string; broken?: string }> {
  const chunks: Buffer[] = [];
  let length = 0;
  const broken = await new Promise<string | undefined>((resolve) => {
    response.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      length += chunk.length;
      if (length >= bodyBytesMax) resolve(undefined);
    });
    response.on("end", () => resolve(undefined));
    response.on("error", (err) => resolve(signal.aborted ? readingText : `unexpected EOF: ${errnoText(err)}`));
    response.on("close", () => resolve(signal.aborted ? readingText : "unexpected EOF"));
  });
  const body = Buffer.concat(chunks).subarray(0, bodyBytesMax).toString("utf8");
  return { body, ...(broken === undefined ? {} : { broken }) };
}
