import { addAbortListener } from "node:events";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../../lib/errors.ts";
import type { ApiClient, StartInformer, Store } from "../port.ts";
import { certificateSigningRequests } from "../resources.ts";
import type { CertificateSigningRequest } from "../certificate-types.ts";
import { type CertificatePair, parsePair } from "./pair.ts";

/** How signing requests are sent. Disposed after each attempt. */
export interface SigningApi extends AsyncDisposable {
  readonly client: Pick<ApiClient, "create" | "get">;
  readonly startInformer: StartInformer;
}

/** What is asked for. */
export interface SigningOrder {
  /** PEM of the PKCS#10 request. */
  readonly request: string;
  readonly signerName: string;
  readonly usages: readonly string[];
  /** The object's name; absent: the API server makes one that begins with `csr-`. */
  readonly name?: string;
}

/** Names one CertificateSigningRequest on the API server. */
export interface SentRequest {
  readonly name: string;
  readonly uid: string | undefined;
}

/** Where a request stands. */
export type SigningState =
  | { kind: "waiting" }
  /** `pem` is what the signer gave, not looked at yet. */
  | { kind: "issued"; pem: string }
  /** `why` is for people. */
  | { kind: "refused"; why: string };

// Time that an approver has before the attempt ends: the reference's certificateWaitTimeout.
export const signingTimeoutMs = 15 * 60_000;

/**
 * Sends a request. With a name of our own, one that is there already and asks for the same counts as ours.
 * Rejects with what the API server said.
 */
export async function sendSigningRequest(
  { client }: SigningApi,
  { request, signerName, usages, name }: SigningOrder,
  signal: AbortSignal,
): Promise<SentRequest> {
  const metadata = name === undefined ? { name: "", generateName: "csr-" } : { name };
  const spec = { request: Buffer.from(request).toString("base64"), signerName, usages: [...usages] };
  try {
    const { metadata: sent } = await client.create(certificateSigningRequests, { metadata, spec }, { signal });
    return { name: sent.name, uid: sent.uid };
  } catch (err) {
    if (name === undefined || !hasCode(err, "AlreadyExists")) throw err;
    const found = await client.get(certificateSigningRequests, { name }, { signal });
    const isSame = found.spec.signerName === signerName && sameWords(found.spec.usages ?? [], usages);
    if (isSame) return { name, uid: found.metadata.uid };
    throw new AgentError(
      "Conflict",
      `certificate signing request ${name} asks for something else: delete it, then start the agent again`,
      { cause: err },
    );
  }
}

/**
 * Waits for the answer to a request. Resolves with the signer's PEM; rejects with Forbidden if it was denied or cannot be
 * signed, NotFound if it was deleted, DeadlineExceeded after `timeoutMs`, Canceled when `signal` aborts.
 */
export async function awaitCertificate(
  { startInformer }: SigningApi,
  { name, uid }: SentRequest,
  { clock, signal, timeoutMs = signingTimeoutMs }: { clock: Clock; signal: AbortSignal; timeoutMs?: number },
): Promise<string> {
  const what = `certificate signing request ${name}`;
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const fail = (code: "Forbidden" | "NotFound" | "DeadlineExceeded" | "Canceled", why: string) =>
    reject(new AgentError(code, `${what} ${why}`));
  const stop = new AbortController();
  const link = addAbortListener(signal, () => fail("Canceled", "is not waited for any more"));
  const timer = clock.after(timeoutMs, () =>
    fail(
      "DeadlineExceeded",
      `was neither signed nor denied within ${Math.round(timeoutMs / 60_000)} min: approve it sooner`,
    ),
  );
  const informer = startInformer(certificateSigningRequests, { fieldSelector: `metadata.name=${name}` }, stop.signal);
  const look = () => {
    const state = readSigningState(informer.store.get(name), uid);
    if (state === undefined) fail("NotFound", "was deleted");
    else if (state.kind === "issued") resolve(state.pem);
    else if (state.kind === "refused") fail("Forbidden", state.why);
  };
  const unsubscribe = informer.store.subscribe(({ key }) => {
    if (key === name) look();
  });
  untilSynced(informer.store, stop.signal, look);
  try {
    return await promise;
  } finally {
    link[Symbol.dispose]();
    timer.cancel();
    unsubscribe();
    stop.abort();
    await informer.stopped;
  }
}

/** Where a request stands. Pure. `undefined` if it is not there, or is another one of the same name. */
export function readSigningState(
  request: CertificateSigningRequest | undefined,
  uid: string | undefined,
): SigningState | undefined {
  if (request === undefined || (uid !== undefined && request.metadata.uid !== uid)) return undefined;
  const conditions = request.status?.conditions ?? [];
  const has = (type: string) => conditions.find((condition) => condition.type === type && condition.status !== "False");
  for (const type of ["Denied", "Failed"]) {
    const condition = has(type);
    if (condition === undefined) continue;
    const { reason = "no reason", message = "" } = condition;
    const how = type === "Denied" ? "was denied" : "could not be signed";
    return { kind: "refused", why: `${how}: ${reason}${message === "" ? "" : `: ${message}`}` };
  }
  const certificate = request.status?.certificate ?? "";
  if (has("Approved") === undefined || certificate === "") return { kind: "waiting" };
  return { kind: "issued", pem: Buffer.from(certificate, "base64").toString("latin1") };
}

/** The signer's answer, checked: it must be a certificate for our key that is valid now. Throws Invalid. */
export function checkIssued(
  pem: string,
  key: string,
  { request, nowMs }: { request: string; nowMs: number },
): CertificatePair {
  let pair: CertificatePair;
  try {
    pair = parsePair(pem, key);
  } catch (err) {
    throw new AgentError(
      "Invalid",
      `the answer to certificate signing request ${request} is unusable: ${messageOf(err)}`,
      {
        cause: err,
      },
    );
  }
  if (pair.notAfterMs > nowMs) return pair;
  const expired = new Date(pair.notAfterMs).toISOString();
  throw new AgentError(
    "Invalid",
    `the certificate of signing request ${request} expired already at ${expired}: check the clocks`,
  );
}

function untilSynced(store: Store<CertificateSigningRequest>, signal: AbortSignal, then: () => void): void {
  store.synced(signal).then(then, () => {}); // only an abort makes it reject
}

function sameWords(a: readonly string[], b: readonly string[]): boolean {
  return [...a].sort().join() === [...b].sort().join();
}
