/* Figures in SVG: axes with ticks, curves, points, bars, a legend. */

/* A point of a frontier. Points of one series are joined by a line, in the order of x. */
typedef struct frontier_point {
    double x, y;
    const char *label;  /* beside the point; may be NULL */
    const char *series; /* in the legend; may be NULL    */
} frontier_point;

/* Writes a figure of frontiers to an SVG file. */
static dlrn_status draw_frontier(dlrn_context *ctx, const char *path, const char *title,
                                 const char *x_name, const char *y_name,
                                 const frontier_point *points, int n);
