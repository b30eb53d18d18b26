import { describe, expect, test } from "vitest";
import type { Pod, PodSpec } from "../../../agent/kube/types.ts";
import type { Admission } from "../../../agent/pods/admission/port.ts";
import { admitted, asking, asks, critical, guaranteed, named, rejection, welcome } from "./admission-support.ts";

describe("preemption for a critical pod", () => {
  const preemptor = (requests: Record<string, string>, spec: Partial<PodSpec> = {}) =>
    asking(requests, { priority: critical, ...spec });
  const burstable = (name: string, cpu: string, memory = "0") =>
    named(name, { containers: asks({ cpu, memory }), priority: 0 });
  const victims = (admission: Admission) =>
    admission.kind === "preempt" ? admission.victims.map(({ metadata }) => metadata.name).sort() : admission;
  const rows: { name: string; pod: Pod; others: Pod[]; want: unknown }[] = [
    { name: "nobody has to go if it fits", pod: preemptor({ cpu: "1" }), others: [burstable("a", "1")], want: welcome },
    {
      name: "one that is large enough goes rather than two",
      pod: preemptor({ cpu: "1" }),
      others: [burstable("small", "500m"), burstable("large", "1500m")],
      want: ["large"],
    },
    {
      name: "of two that are enough the one with less memory goes",
      pod: preemptor({ cpu: "1" }),
      others: [burstable("more", "1", "200Mi"), burstable("less", "1", "100Mi")],
      want: ["less"],
    },
    {
      name: "and if that is equal the one with less CPU",
      pod: preemptor({ cpu: "500m" }),
      others: [burstable("more", "1200m"), burstable("less", "800m")],
      want: ["less"],
    },
    {
      name: "several go if it takes several",
      pod: preemptor({ cpu: "2" }),
      others: [burstable("a", "1"), burstable("b", "1")],
      want: ["a", "b"],
    },
    {
      name: "a Guaranteed pod stays if Burstable ones are enough",
      pod: preemptor({ cpu: "1" }),
      others: [named("guaranteed", guaranteed("1", "1Mi")), burstable("burstable", "1")],
      want: ["burstable"],
    },
    {
      name: "a Guaranteed pod goes for what the others cannot give",
      pod: preemptor({ cpu: "1800m" }),
      others: [named("guaranteed", guaranteed("1500m", "1Mi")), burstable("burstable", "500m")],
      want: ["burstable", "guaranteed"],
    },
    {
      name: "for a place, a BestEffort pod goes",
      pod: preemptor({}),
      others: [named("guaranteed", guaranteed("1", "1Mi")), burstable("burstable", "100m"), named("best", {})],
      want: ["best"],
    },
    {
      name: "critical pods of the same rank stay",
      pod: preemptor({ cpu: "1" }),
      others: [named("peer", { containers: asks({ cpu: "1500m" }), priority: critical })],
      want: rejection(
        "UnexpectedAdmissionError",
        "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: " +
          "no set of running pods found to reclaim resources: [(res: cpu, q: 500), ]",
      ),
    },
    {
      name: "a critical pod of lower priority goes",
      pod: preemptor({ cpu: "1" }, { priority: critical + 1000 }),
      others: [named("lower", { containers: asks({ cpu: "1500m" }), priority: critical })],
      want: ["lower"],
    },
    {
      name: "what would still be short is what the message counts",
      pod: preemptor({ cpu: "3" }),
      others: [burstable("a", "1500m")],
      want: rejection("UnexpectedAdmissionError", expect.stringContaining("[(res: cpu, q: 1000), ]")),
    },
    {
      name: "nobody goes for a pod that lacks something else, too",
      pod: preemptor({ cpu: "1" }, { nodeSelector: { disk: "tape" } }),
      others: [burstable("a", "1500m")],
      want: rejection("NodeAffinity"),
    },
    {
      name: "nobody goes for a pod that is then refused for its AppArmor profile",
      pod: preemptor({ cpu: "1" }, { securityContext: { appArmorProfile: { type: "RuntimeDefault" } } }),
      others: [burstable("a", "1500m")],
      want: rejection("AppArmor"),
    },
    {
      name: "nobody goes for a pod that is not critical",
      pod: asking({ cpu: "1" }, { priority: 1_000 }),
      others: [burstable("a", "1500m")],
      want: rejection("OutOfcpu"),
    },
  ];
  test.each(rows)("$name", ({ pod, others, want }) => expect(victims(admitted(pod, { others }))).toEqual(want));
});
