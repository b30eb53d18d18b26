import { createPrivateKey, createPublicKey } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { isIP } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CertificatePair, parsePair } from "../../../../agent/kube/certificates/pair.ts";
import type { SigningApi } from "../../../../agent/kube/certificates/signing.ts";
import {
  buildCertificate,
  type CertificateTemplate,
  createKey,
  keyPem,
} from "../../../../agent/kube/certificates/x509.ts";
import type { StartInformer } from "../../../../agent/kube/port.ts";
import type { CertificateSigningRequest } from "../../../../agent/kube/certificate-types.ts";
import type { Clock } from "../../../../agent/lib/clock.ts";
import {
  CertificateAuthority,
  type CertificateRequest,
  parseSigningRequest,
  type ParsedSigningRequest,
} from "../../../support/apiserver/pki.ts";
import { MemoryStore } from "../../../support/memory-store.ts";

/** A directory that goes with the test. */
export async function temporaryDir(): Promise<{ path: string; [Symbol.asyncDispose](): Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), "nodelet-certs-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** The authority of this file's certificates. */
export const authority = CertificateAuthority.create("kubernetes");

/** A node's pair that the authority signed. Lifetimes count from the machine's own clock. */
export async function makePair(request: Partial<CertificateRequest> = {}): Promise<CertificatePair> {
  const { privateKey } = await createKey();
  const node = { commonName: "system:node:n1", organizations: ["system:nodes"], usage: "client" } as const;
  const certificate = authority.certify({ ...node, ...request }, createPublicKey(privateKey));
  return parsePair(certificate, keyPem(privateKey));
}

/** What a {@link FakeSigner} makes of a request: conditions and a certificate, or nothing at all. */
export type Answer = (asked: ParsedSigningRequest, nth: number) => CertificateSigningRequest["status"] | undefined;

const approved = { type: "Approved", status: "True" };

/** An answer with a certificate that is valid from `clock`'s now for `lifetimeMs`. */
export function signFor(
  clock: Pick<Clock, "now">,
  lifetimeMs: number,
  change: Partial<CertificateTemplate> = {},
): Answer {
  return ({ commonName, organizations, names, publicKey }) => {
    const [ips, dnsNames] = [names.filter((name) => isIP(name) !== 0), names.filter((name) => isIP(name) === 0)];
    const certificate = buildCertificate({
      template: { commonName, organizations, dnsNames, ips, ...change },
      publicKey,
      issuer: { name: { commonName: "kubernetes", organizations: [] }, key: createPrivateKey(authority.key) },
      isAuthority: false,
      notBeforeMs: clock.now(),
      notAfterMs: clock.now() + lifetimeMs,
    });
    return { conditions: [approved], certificate: Buffer.from(certificate).toString("base64") };
  };
}

/** An answer that refuses. */
export function refuse(type: "Denied" | "Failed", message: string): Answer {
  return () => ({ conditions: [{ type, status: "True", reason: "NoReason", message }] });
}

/** An API server that knows signing requests only. */
export class FakeSigner {
  readonly requests: CertificateSigningRequest[] = [];
  readonly store = new MemoryStore<CertificateSigningRequest>().markSynced();
  /** Ways to the server that are open now. */
  open = 0;
  answer: Answer = () => undefined;
  /** `create` rejects with it. */
  failure: Error | undefined;

  /** For the manager's `openApi`. */
  openApi = (): SigningApi => {
    this.open += 1;
    const startInformer = (() => ({
      store: this.store,
      stopped: Promise.resolve(),
      lastHeardAtMs: 0,
    })) as unknown as StartInformer; // one resource only
    const client = {
      create: async (_: unknown, object: unknown) => this.#create(object as CertificateSigningRequest),
      get: async (_: unknown, { name }: { name: string }) => this.store.get(name),
    } as unknown as SigningApi["client"];
    return {
      client,
      startInformer,
      [Symbol.asyncDispose]: async () => {
        this.open -= 1;
      },
    };
  };

  /** Sets the status of the n-th request. */
  decide(nth: number, answer: Answer): void {
    const request = this.requests[nth];
    if (request === undefined) throw new Error(`there is no request ${nth}`);
    const status = answer(parsed(request), nth);
    if (status !== undefined) this.store.put({ ...request, status });
  }

  /** The names asked for by the n-th request. */
  names(nth: number): readonly string[] {
    const request = this.requests[nth];
    return request === undefined ? [] : parsed(request).names;
  }

  #create({ metadata, spec }: CertificateSigningRequest): CertificateSigningRequest {
    if (this.failure !== undefined) throw this.failure;
    const nth = this.requests.length;
    const name = metadata.name === "" ? `${metadata.generateName}${nth}` : metadata.name;
    const request = { metadata: { name, uid: `uid-${nth}` }, spec };
    this.requests.push(request);
    this.store.put(request);
    const status = this.answer(parsed(request), nth);
    if (status !== undefined) this.store.put({ ...request, status });
    return request;
  }
}

function parsed({ spec }: CertificateSigningRequest): ParsedSigningRequest {
  return parseSigningRequest(Buffer.from(spec.request, "base64").toString());
}
