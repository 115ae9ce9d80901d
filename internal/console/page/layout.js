// Where blocks go. Nothing here knows of the page.

// weigh is the weight of a shard in steps of about 40 %, so that loads that
// waver leave the blocks where they are.
export function weigh(weight) {
  return 2 ** (Math.round(Math.log2(Math.max(weight, 1)) * 2) / 2);
}

// strips lays blocks out in rows, in the order given, each as large as its
// weight; together they fill the rectangle. Neighbours stay neighbours when
// weights change, which treemaps that sort by weight do not give.
export function strips(weights, width, height) {
  const total = weights.reduce((sum, w) => sum + w, 0);
  if (total <= 0 || width <= 0 || height <= 0) return weights.map(() => ({ x: 0, y: 0, width: 0, height: 0 }));
  const unit = (width * height) / total;
  // elongation is the mean over a row of how far its blocks are from squares.
  const elongation = (row, sum) => {
    const high = (sum * unit) / width;
    let all = 0;
    for (const w of row) {
      const wide = (w * unit) / high;
      all += Math.max(wide / high, high / wide);
    }
    return all / row.length;
  };
  const blocks = [];
  let y = 0;
  const place = (row, sum) => {
    const high = (sum * unit) / width;
    let x = 0;
    for (const w of row) {
      const wide = (w * unit) / high;
      blocks.push({ x, y, width: wide, height: high });
      x += wide;
    }
    y += high;
  };
  let row = [];
  let sum = 0;
  for (const w of weights) {
    if (row.length > 0 && elongation([...row, w], sum + w) > elongation(row, sum)) {
      place(row, sum);
      row = [];
      sum = 0;
    }
    row.push(w);
    sum += w;
  }
  place(row, sum);
  return blocks;
}

// density is how large the panels of so many replicas are.
export function density(replicas) {
  if (replicas <= 4) return { name: "large", height: 190 };
  if (replicas <= 12) return { name: "medium", height: 140 };
  if (replicas <= 36) return { name: "small", height: 96 };
  return { name: "tiny", height: 72 };
}
