import { addAbortListener } from "node:events";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { ignoreAbort, Loop } from "../../lib/loop.ts";
import { ApiError } from "../api-error.ts";
import { attemptRetryMs, decideExpiry, decideRotation, rotationTimeMs } from "./decide.ts";
import { type CertificatePair, templateMismatch } from "./pair.ts";
import type { CertificateSource } from "./port.ts";
import { awaitCertificate, checkIssued, sendSigningRequest, type SigningApi } from "./signing.ts";
import type { PemStore } from "./store.ts";
import { buildSigningRequest, type CertificateTemplate, createKey, keyPem } from "./x509.ts";

export interface CertificateManagerOptions {
  /** What it is, for log lines: `client`, `serving`. */
  readonly purpose: string;
  readonly store: PemStore;
  readonly signerName: string;
  readonly usages: readonly string[];
  /** What to ask for now; undefined while that is not known. */
  template(): CertificateTemplate | undefined;
  /** Calls `listener` whenever `template` may give something else. @returns ends it */
  subscribeTemplate?(listener: () => void): () => void;
  /** Opens the way to the API server for one attempt. */
  openApi(): SigningApi;
  /** Nothing works without this certificate: `run` rejects when only a new start can help. */
  readonly isEssential: boolean;
  readonly observer?: CertificateObserver;
}

/** Is told what metrics count. */
export interface CertificateObserver {
  renewFailed(): void;
  /** @param ageSeconds of the certificate that was replaced */
  rotated(ageSeconds: number): void;
}

export interface CertificateManagerDeps {
  clock: Clock;
  log: Logger;
  /** 0..1 */
  random?: () => number;
}

// The wall clock may be set while we rest, which no timer notices. The reference compares every 10 s.
export const expiryCheckMs = 10_000;
export const rotationCheckMs = 60_000;

/**
 * Keeps one certificate: has a new one signed when there is none, when it does not say what it should, and well before it
 * expires. The loop is woken by time and by changes of the template.
 */
export class CertificateManager implements CertificateSource {
  readonly #options: CertificateManagerOptions;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #random: () => number;
  readonly #loop: Loop;
  readonly #listeners = new Set<() => void>();
  #pair: (CertificatePair & { rotateAtMs: number }) | undefined;
  /** Issued, in use, and still to be saved. */
  #unsaved: CertificatePair | undefined;
  #isForced = false;
  #isServerResponsive = false;
  #attempt: { wanted: string; stop: AbortController } | undefined;
  #reported = "";

  constructor(options: CertificateManagerOptions, { clock, log, random = Math.random }: CertificateManagerDeps) {
    this.#options = options;
    this.#clock = clock;
    this.#log = log.child({ certificate: options.purpose });
    this.#random = random;
    this.#loop = new Loop({
      clock,
      pass: (signal) => this.#pass(signal),
      onError: (err) => this.#failed(err),
      retryMs: (failures) => attemptRetryMs(failures, random),
      resyncMs: rotationCheckMs,
    });
  }

  /**
   * Takes what the store has. Call it once, before `run`.
   * @param initial used, saved and replaced soon if the store has nothing that is valid
   */
  async load(initial?: CertificatePair): Promise<void> {
    const stored = await this.#options.store.load();
    const isValid = (pair: CertificatePair | undefined) => pair !== undefined && pair.notAfterMs > this.#clock.now();
    if (initial === undefined || isValid(stored) || !isValid(initial)) {
      if (stored !== undefined) this.#use(stored);
      return;
    }
    this.#isForced = true;
    this.#unsaved = initial;
    this.#use(initial);
    await this.#save().catch((err: unknown) => this.#failed(err));
  }

  current(): CertificatePair | undefined {
    return this.#pair !== undefined && this.#clock.now() < this.#pair.notAfterMs ? this.#pair : undefined;
  }

  subscribe(listener: () => void): () => void {
    const own = () => listener();
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  }

  /** Keeps the certificate until `signal` aborts. Rejects only if it is essential, expired or absent, and beyond repair. */
  async run(signal: AbortSignal): Promise<void> {
    const stop = new AbortController();
    const link = addAbortListener(signal, () => stop.abort());
    const unsubscribe = this.#options.subscribeTemplate?.(() => this.#onTemplate());
    const rotating = this.#loop.run(stop.signal);
    try {
      await this.#watchExpiry(stop.signal);
    } finally {
      stop.abort();
      link[Symbol.dispose]();
      unsubscribe?.();
      await rotating;
    }
  }

  async #pass(signal: AbortSignal): Promise<number | undefined> {
    if (this.#unsaved !== undefined) await this.#save();
    const template = this.#options.template();
    const plan = decideRotation(
      { hasTemplate: template !== undefined, current: this.#facts(template), isForced: this.#isForced },
      this.#clock.now(),
    );
    if (plan.kind === "rest") return Math.min(plan.restMs, rotationCheckMs);
    if (plan.kind === "wait" || template === undefined) return undefined;
    this.#log.info({ why: plan.why }, "requesting a certificate");
    const isDone = await this.#request(template, signal);
    this.#loop.wake(); // to see when the next one is due, or to ask for what is wanted by now
    return isDone ? undefined : 0;
  }

  #facts(template: CertificateTemplate | undefined) {
    if (this.#pair === undefined) return undefined;
    const { leaf, notBeforeMs, notAfterMs, rotateAtMs } = this.#pair;
    const mismatch = template === undefined ? undefined : templateMismatch(leaf, template);
    return { notBeforeMs, notAfterMs, rotateAtMs, ...(mismatch === undefined ? {} : { mismatch }) };
  }

  /** One attempt. @returns false if it was given up because the template has changed */
  async #request(template: CertificateTemplate, signal: AbortSignal): Promise<boolean> {
    const stop = new AbortController();
    const link = addAbortListener(signal, () => stop.abort());
    this.#attempt = { wanted: JSON.stringify(template), stop };
    try {
      const pair = await this.#obtain(template, stop.signal);
      if (this.#pair !== undefined) {
        this.#options.observer?.rotated((this.#clock.now() - this.#pair.notBeforeMs) / 1_000);
      }
      this.#isForced = false;
      this.#unsaved = pair;
      this.#use(pair, this.#clock.now());
      this.#reported = "";
      this.#log.info({ notAfter: new Date(pair.notAfterMs).toISOString() }, "a certificate was issued");
      await this.#save();
      const mismatch = templateMismatch(pair.leaf, template);
      if (mismatch === undefined) return true;
      throw new AgentError("Invalid", `the signer gave another certificate than was asked for: ${mismatch}`);
    } catch (err) {
      if (stop.signal.aborted && !signal.aborted) return false; // something else is wanted by now
      throw err;
    } finally {
      this.#attempt = undefined;
      link[Symbol.dispose]();
    }
  }

  async #obtain(template: CertificateTemplate, signal: AbortSignal): Promise<CertificatePair> {
    const { signerName, usages } = this.#options;
    const key = await createKey();
    await using api = this.#options.openApi();
    const order = { request: buildSigningRequest(template, key), signerName, usages };
    const sent = await this.#noteHealth(sendSigningRequest(api, order, signal));
    this.#log.info({ request: sent.name }, "waiting for the certificate to be approved and signed");
    const pem = await awaitCertificate(api, sent, { clock: this.#clock, signal });
    return checkIssued(pem, keyPem(key.privateKey), { request: sent.name, nowMs: this.#clock.now() });
  }

  async #noteHealth<T>(call: Promise<T>): Promise<T> {
    try {
      const answer = await call;
      this.#isServerResponsive = true;
      return answer;
    } catch (err) {
      // These refusals come from a server that works; other errors may come from a proxy on the way.
      this.#isServerResponsive = err instanceof ApiError && [401, 403, 404].includes(err.status);
      throw err;
    }
  }

  async #save(): Promise<void> {
    const pair = this.#unsaved;
    if (pair === undefined) return;
    const { store } = this.#options;
    try {
      await store.save(pair, new Date(this.#clock.now()));
    } catch (err) {
      throw new AgentError("Unavailable", `cannot save the certificate: ${messageOf(err)}`, { cause: err });
    }
    if (this.#unsaved === pair) this.#unsaved = undefined;
  }

  #use(pair: CertificatePair, obtainedAtMs?: number): void {
    this.#pair = { ...pair, rotateAtMs: rotationTimeMs(pair, this.#random(), obtainedAtMs) };
    this.#tell();
  }

  #tell(): void {
    for (const listener of [...this.#listeners]) listener();
  }

  #onTemplate(): void {
    if (this.#attempt !== undefined && this.#attempt.wanted !== JSON.stringify(this.#options.template())) {
      this.#attempt.stop.abort();
    }
    this.#loop.wake();
  }

  /** Says once what keeps going wrong. */
  #failed(err: unknown): void {
    this.#options.observer?.renewFailed();
    const message = messageOf(err);
    this.#log[message === this.#reported ? "debug" : "warn"](
      { err: message },
      "cannot renew the certificate, trying again",
    );
    this.#reported = message;
  }

  /** Tells subscribers when the certificate expires, and ends an agent that cannot go on. */
  async #watchExpiry(signal: AbortSignal): Promise<void> {
    let validAtMs = this.#clock.monotonic();
    let wasValid = this.current() !== undefined;
    let hasExpired = false;
    let reported = "";
    while (!signal.aborted) {
      const isValid = this.current() !== undefined;
      if (isValid) validAtMs = this.#clock.monotonic();
      else if (wasValid) this.#tell();
      hasExpired = !isValid && (hasExpired || wasValid);
      wasValid = isValid;
      if (this.#options.isEssential) {
        const withoutMs = this.#clock.monotonic() - validAtMs;
        const { kind, ...plan } = decideExpiry({
          isValid,
          hasExpired,
          withoutMs,
          isServerResponsive: this.#isServerResponsive,
        });
        const why = "why" in plan ? plan.why : "";
        if (kind === "exit") {
          throw new AgentError(
            "Unauthorized",
            `${why}, although the API server answers: ending, so that a new start can find new credentials`,
          );
        }
        if (kind === "warn" && reported === "") {
          this.#log.warn({ why }, "waiting for the API server to sign a certificate");
        }
        reported = kind === "fine" ? "" : why;
      }
      const leftMs = (this.#pair?.notAfterMs ?? 0) - this.#clock.now();
      const restMs = isValid ? Math.min(expiryCheckMs, leftMs) : expiryCheckMs;
      await this.#clock.sleep(restMs, signal).catch(ignoreAbort);
    }
  }
}
