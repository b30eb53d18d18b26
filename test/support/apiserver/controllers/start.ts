import type { Clock } from "../../../../agent/lib/clock.ts";
import type { CertificateAuthority } from "../pki.ts";
import type { Registry } from "../registry.ts";
import { startAttachController } from "./attach.ts";
import { startBindController } from "./bind.ts";
import { startClaimController } from "./claims.ts";
import { startEphemeralClaimController } from "./ephemeral-claims.ts";
import { startEndpointSliceController } from "./endpoint-slices.ts";
import { startEndpointsController } from "./endpoints.ts";
import { startNamespaceController } from "./namespaces.ts";
import { startNodeLifecycleController } from "./node-lifecycle.ts";
import { startServiceAccountController } from "./service-accounts.ts";
import { startSigningController } from "./signing-requests.ts";

/** Which controllers run beside the server. */
export interface ControllerOptions {
  /** Default true: unscheduled pods go to the first node that takes them. */
  bind?: boolean;
  /** Default true; Endpoints objects come with them. */
  endpointSlices?: boolean;
  /** Endpoints in one slice; default 100, as the controller manager's --max-endpoints-per-slice. */
  endpointsPerSliceMax?: number;
  /** Default true. Without it pods need no service account and get no token volume. */
  serviceAccounts?: boolean;
  /**
   * Default true: pods get the claims of their ephemeral volumes, claims are bound to the volumes that they name, and CSI
   * volumes of bound pods are attached.
   */
  storage?: boolean;
  /** Default "approve": kubelets' certificate requests are approved and signed; "sign" waits for approval. */
  signing?: "approve" | "sign" | "off";
  /** How long signed certificates live; default a year. What a request asks for counts more. */
  signedLifetimeMs?: number;
  /** Default false: nodes get taints by their condition and turn Unknown when their lease is stale. */
  nodeLifecycle?: boolean;
  /** Default 50 s, as --node-monitor-grace-period. */
  nodeMonitorGraceMs?: number;
}

const endpointsPerSliceMaxDefault = 100;
const nodeMonitorGraceMsDefault = 50_000;

/** Starts the chosen controllers. Returns the function that stops them all. */
export function startControllers(
  registry: Registry,
  options: ControllerOptions,
  { clock, authority }: { clock: Clock; authority: CertificateAuthority },
): () => void {
  const signing = options.signing ?? "approve";
  const stops = [startNamespaceController(registry)];
  if (options.serviceAccounts ?? true) stops.push(startServiceAccountController(registry, authority.certificate));
  if (options.bind ?? true) stops.push(startBindController(registry, clock));
  if (options.endpointSlices ?? true) {
    stops.push(startEndpointSliceController(registry, options.endpointsPerSliceMax ?? endpointsPerSliceMaxDefault));
    stops.push(startEndpointsController(registry));
  }
  if (options.storage ?? true) {
    stops.push(
      startClaimController(registry),
      startEphemeralClaimController(registry),
      startAttachController(registry),
    );
  }
  if (signing !== "off") {
    const { signedLifetimeMs: lifetimeMs } = options;
    stops.push(startSigningController(registry, { authority, autoApprove: signing === "approve", lifetimeMs }));
  }
  if (options.nodeLifecycle ?? false) {
    stops.push(startNodeLifecycleController(registry, clock, options.nodeMonitorGraceMs ?? nodeMonitorGraceMsDefault));
  }
  return () => {
    for (const stop of stops) stop();
  };
}
