import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomUUID,
  sign,
  verify,
} from "node:crypto";
import type { Clock } from "../../../agent/lib/clock.ts";
import { isObject, objectAt, stringAt } from "./json.ts";
import { badRequest, conflict, invalid, invalidValue, notFound } from "./status.ts";
import type { Store } from "./store.ts";
import type { ApiObject, User } from "./types.ts";

/** --service-account-issuer, and the audience of tokens that name none. */
export const tokenIssuer = "https://kubernetes.default.svc.cluster.local";

const secondsDefault = 3600;
const secondsMin = 600;
const secondsMax = 2 ** 32;
// A token of exactly this lifetime was asked for by the injected volume. The server then issues one that lives for a
// year, so that programs that never re-read the file go on working, and marks when it should have been refreshed.
const injectedSeconds = 3607;
const extendedSeconds = 365 * 24 * 3600;

/** Issues and checks service account tokens (RS256). */
export class TokenAuthority {
  /** PEM of the private key, to be kept over a restart. */
  readonly key: string;
  /** As `--service-account-max-token-expiration`, but also shorter than the real one may be: a fault. */
  secondsMax: number | undefined;
  readonly #private: KeyObject;
  readonly #public: KeyObject;
  readonly #store: Store;
  readonly #clock: Clock;

  constructor(store: Store, clock: Clock, key = newKey()) {
    this.key = key;
    this.#private = createPrivateKey(key);
    this.#public = createPublicKey(this.#private);
    this.#store = store;
    this.#clock = clock;
  }

  /** Answers a TokenRequest for `account`. */
  issue(account: ApiObject, request: ApiObject): ApiObject {
    const spec = objectAt(request, "spec");
    const asked = spec["audiences"];
    const audiences = Array.isArray(asked) && asked.length > 0 ? asked.map(String) : [tokenIssuer];
    const wanted = typeof spec["expirationSeconds"] === "number" ? spec["expirationSeconds"] : secondsDefault;
    const kind = { group: "authentication.k8s.io", kind: "TokenRequest" };
    if (wanted < secondsMin) {
      throw invalid(kind, "", [
        invalidValue("spec.expirationSeconds", wanted, "may not specify a duration less than 10 minutes"),
      ]);
    }
    if (wanted > secondsMax) {
      throw invalid(kind, "", [
        invalidValue("spec.expirationSeconds", wanted, "may not specify a duration larger than 2^32 seconds"),
      ]);
    }
    const seconds = Math.min(wanted, this.secondsMax ?? wanted);
    const bound = this.#bound(account, spec["boundObjectRef"]);
    const now = Math.floor(this.#clock.now() / 1000);
    const isExtended = seconds === injectedSeconds && asked === undefined && bound["pod"] !== undefined;
    const { name, namespace, uid } = account.metadata;
    const claims = {
      aud: audiences,
      exp: now + (isExtended ? extendedSeconds : seconds),
      iat: now,
      iss: tokenIssuer,
      jti: randomUUID(),
      "kubernetes.io": {
        namespace,
        ...bound,
        serviceaccount: { name, uid },
        ...(isExtended ? { warnafter: now + seconds } : {}),
      },
      nbf: now,
      sub: `system:serviceaccount:${namespace}:${name}`,
    };
    const expirationTimestamp = `${new Date((now + seconds) * 1000).toISOString().slice(0, 19)}Z`;
    return {
      apiVersion: "authentication.k8s.io/v1",
      kind: "TokenRequest",
      metadata: {
        name,
        ...(namespace === undefined ? {} : { namespace }),
        creationTimestamp: `${new Date(now * 1000).toISOString().slice(0, 19)}Z`,
      },
      spec: { ...spec, audiences, expirationSeconds: seconds },
      status: { token: this.#sign(claims), expirationTimestamp },
    };
  }

  /**
   * Who a token speaks for, or undefined if it is none of ours, too old, for other audiences, or bound to something
   * that is gone.
   */
  authenticate(
    token: string,
    audiences: readonly string[] = [tokenIssuer],
  ): { user: User; audiences: string[] } | undefined {
    const claims = this.#verify(token);
    if (claims === undefined) return undefined;
    const now = this.#clock.now() / 1000;
    if (typeof claims["exp"] !== "number" || claims["exp"] <= now) return undefined;
    const own = Array.isArray(claims["aud"]) ? claims["aud"].map(String) : [];
    const shared = own.filter((audience) => audiences.includes(audience));
    if (shared.length === 0) return undefined;
    const about = objectAt(claims, "kubernetes.io");
    const namespace = stringAt(about, "namespace");
    const name = stringAt(about, "serviceaccount", "name");
    const uid = stringAt(about, "serviceaccount", "uid");
    if (this.#store.get("serviceaccounts", `${namespace}/${name}`)?.metadata.uid !== uid) return undefined;
    const pod = objectAt(about, "pod");
    const podName = stringAt(pod, "name");
    if (podName !== "" && this.#store.get("pods", `${namespace}/${podName}`)?.metadata.uid !== pod["uid"]) {
      return undefined;
    }
    const extra: Record<string, string[]> = {
      "authentication.kubernetes.io/credential-id": [`JTI=${stringAt(claims, "jti")}`],
    };
    if (podName !== "") {
      extra["authentication.kubernetes.io/pod-name"] = [podName];
      extra["authentication.kubernetes.io/pod-uid"] = [stringAt(pod, "uid")];
    }
    const node = objectAt(about, "node");
    if (stringAt(node, "name") !== "") extra["authentication.kubernetes.io/node-name"] = [stringAt(node, "name")];
    const groups = ["system:serviceaccounts", `system:serviceaccounts:${namespace}`, "system:authenticated"];
    return { user: { name: `system:serviceaccount:${namespace}:${name}`, uid, groups, extra }, audiences: shared };
  }

  #bound(account: ApiObject, reference: unknown): Record<string, { name: string; uid: string | undefined }> {
    if (!isObject(reference)) return {};
    const kind = stringAt(reference, "kind");
    const name = stringAt(reference, "name");
    const uid = stringAt(reference, "uid");
    const namespace = account.metadata.namespace ?? "";
    const plural = kind === "Pod" ? "pods" : kind === "Secret" ? "secrets" : kind === "Node" ? "nodes" : undefined;
    if (plural === undefined) throw badRequest(`cannot bind token for serviceaccount to object type ${kind}`);
    const found = this.#store.get(plural, plural === "nodes" ? name : `${namespace}/${name}`);
    if (found === undefined) throw notFound({ group: "", plural }, name);
    if (uid !== "" && uid !== found.metadata.uid) {
      throw conflict(
        { group: "", plural },
        name,
        `the UID in the bound object reference (${uid}) does not match the UID in record. ` +
          "The object might have been deleted and then recreated",
      );
    }
    const bound: Record<string, { name: string; uid: string | undefined }> = {
      [kind.toLowerCase()]: { name, uid: found.metadata.uid },
    };
    if (kind !== "Pod") return bound;
    if (stringAt(found, "spec", "serviceAccountName") !== account.metadata.name) {
      throw badRequest(
        `cannot bind token for serviceaccount "${account.metadata.name}" to pod running with different serviceaccount name.`,
      );
    }
    const nodeName = stringAt(found, "spec", "nodeName");
    if (nodeName !== "") bound["node"] = { name: nodeName, uid: this.#store.get("nodes", nodeName)?.metadata.uid };
    return bound;
  }

  #sign(claims: unknown): string {
    const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const body = `${part({ alg: "RS256", kid: "test", typ: "JWT" })}.${part(claims)}`;
    return `${body}.${sign("sha256", Buffer.from(body), this.#private).toString("base64url")}`;
  }

  #verify(token: string): Record<string, unknown> | undefined {
    const [head = "", body = "", signature = "", ...more] = token.split(".");
    if (signature === "" || more.length > 0) return undefined;
    if (!verify("sha256", Buffer.from(`${head}.${body}`), this.#public, Buffer.from(signature, "base64url"))) {
      return undefined;
    }
    try {
      const claims: unknown = JSON.parse(Buffer.from(body, "base64url").toString("utf8"));
      return isObject(claims) ? claims : undefined;
    } catch {
      return undefined;
    }
  }
}

function newKey(): string {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return privateKey.export({ type: "pkcs8", format: "pem" }).toString();
}
