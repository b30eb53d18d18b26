import type { NodeSettings } from "../../../agent/node/registration.ts";

/** What the configuration of an ordinary node says. */
export const settings: NodeSettings = {
  nodeName: "n1",
  hostname: "n1",
  nodeIPs: ["10.0.0.1"],
  cloudProvider: "",
  nodeLabels: { team: "a" },
  registerWithTaints: [],
  providerID: "",
  enableControllerAttachDetach: true,
  registerNode: true,
  maxPods: 110,
  podsPerCore: 0,
  localStorageCapacityIsolation: true,
  reservations: { reserved: {}, evictionHard: {}, ignoreEviction: false },
  kubeletVersion: "v1.36.0",
  kubeletPort: 10250,
  statusUpdateMs: 10_000,
  statusReportMs: 300_000,
  imagesMax: 50,
  declaredFeatures: [],
  resetExtendedResources: true,
};
