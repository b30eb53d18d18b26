import type { CertificateAuthority } from "../pki.ts";
import { parseSigningRequest } from "../pki.ts";
import { isObject, numberAt, objectAt, objectsAt, stringAt } from "../json.ts";
import type { Registry } from "../registry.ts";
import type { ApiObject } from "../types.ts";

const clientSigners = ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kube-apiserver-client"];
const servingSigner = "kubernetes.io/kubelet-serving";

export interface SignerOptions {
  authority: CertificateAuthority;
  /** Approves what nobody has decided; without it, only approved requests are signed. */
  autoApprove: boolean;
  lifetimeMs: number | undefined;
}

/** Approves and signs certificate requests of kubelets. Returns the function that stops it. */
export function startSigningController(
  registry: Registry,
  { authority, autoApprove, lifetimeMs }: SignerOptions,
): () => void {
  const type = registry.typeOf("certificates.k8s.io", "certificatesigningrequests");
  const setStatus = (request: ApiObject, status: Record<string, unknown>) => {
    registry.modify(type, "", request.metadata.name, (object) => {
      object["status"] = { ...objectAt(object, "status"), ...status };
    });
  };
  const look = (request: ApiObject) => {
    const signer = stringAt(request, "spec", "signerName");
    const conditions = objectsAt(request, "status", "conditions");
    const isKnown = signer === servingSigner || clientSigners.includes(signer);
    const has = (condition: string) => conditions.some((c) => c["type"] === condition);
    if (!isKnown || stringAt(request, "status", "certificate") !== "" || has("Denied") || has("Failed")) return;
    const condition = (conditionType: string, reason: string, message: string) => ({
      type: conditionType,
      status: "True",
      reason,
      message,
      lastUpdateTime: registry.now(),
      lastTransitionTime: registry.now(),
    });
    if (!has("Approved")) {
      if (!autoApprove) return;
      const approved = condition("Approved", "AutoApproved", "Auto approving kubelet certificate.");
      setStatus(request, { conditions: [...conditions, approved] });
      return; // The change comes back here, approved.
    }
    try {
      const pem = Buffer.from(stringAt(request, "spec", "request"), "base64").toString("utf8");
      const { commonName, organizations, names, publicKey } = parseSigningRequest(pem);
      const seconds = numberAt(request, "spec", "expirationSeconds");
      const certificate = authority.certify(
        {
          commonName,
          organizations,
          names: signer === servingSigner ? names : [],
          usage: signer === servingSigner ? "server" : "client",
          ...(seconds === undefined
            ? lifetimeMs === undefined
              ? {}
              : { lifetimeMs }
            : { lifetimeMs: seconds * 1000 }),
        },
        publicKey,
      );
      setStatus(request, { certificate: Buffer.from(certificate).toString("base64") });
    } catch (err) {
      const why = err instanceof Error ? err.message : String(err);
      setStatus(request, { conditions: [...conditions, condition("Failed", "SignerValidationFailure", why)] });
    }
  };
  return registry.onChange(({ type: change, storage, key }) => {
    if (storage !== type.storage || change === "DELETED") return;
    const current = registry.store.get(storage, key);
    if (isObject(current)) look(current);
  });
}
