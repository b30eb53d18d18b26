import type { MetricFamily, Sample } from "../lib/metrics.ts";
import { definitions, type RenderContext } from "./cadvisor-definitions.ts";
import type { Row } from "./cadvisor-rows.ts";

/** The `container_*` families of these rows, in the order of their names. Samples are made while they are iterated. */
export function cadvisorFamilies(rows: readonly Row[], context: RenderContext): MetricFamily[] {
  return definitions.map(({ name, type, help, values, isTimeless }) => ({
    name,
    type,
    help,
    samples: {
      *[Symbol.iterator](): Generator<Sample> {
        for (const row of rows) {
          for (const { value, labels, atMs = row.reading.atMs } of values(row, context)) {
            yield {
              labels: labels === undefined ? row.labels : inOrder(row.labels, labels),
              value,
              ...(isTimeless === true ? {} : { timestampMs: atMs }),
            };
          }
        }
      },
    },
  }));
}

/** Both together by name, as they are shown: sorting tens of thousands of sets again would cost more than all the rest. */
function inOrder(own: Row["labels"], further: Readonly<Record<string, string>>): Record<string, string> {
  const merged: Record<string, string> = {};
  const names = Object.keys(further);
  let next = 0;
  for (const name in own) {
    for (let other = names[next]; other !== undefined && other < name; other = names[next]) {
      merged[other] = further[other] ?? "";
      next += 1;
    }
    merged[name] = own[name] ?? "";
  }
  for (const other of names.slice(next)) merged[other] = further[other] ?? "";
  return merged;
}
